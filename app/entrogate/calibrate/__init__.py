"""Calibrates and evaluates policies from stored trajectories; offline."""
