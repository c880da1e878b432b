"""From stored trajectories with shadows to a policy with a promise; offline."""
