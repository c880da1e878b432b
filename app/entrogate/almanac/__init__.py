"""The Almanac: a synthetic world, its tools, a tiny model trained on it, an agent and an evaluation."""
