"""Offline RL on exported trajectories, and the way of its result back into vLLM."""
