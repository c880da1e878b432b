"""What the gateway costs and what the gate brings, measured against references."""
