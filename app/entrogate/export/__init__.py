"""From the store to training data: Parquet that is written once, and what other trainers read."""
