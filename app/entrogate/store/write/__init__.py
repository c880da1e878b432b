"""Writing: the group-commit writer, turns, feedback, rewards, weights, policies."""
