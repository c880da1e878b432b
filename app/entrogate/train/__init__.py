"""Offline RL on exported trajectories."""
