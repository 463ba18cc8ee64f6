"""A run's folder: what is in it, who may write there, checkpoints, logs, resuming."""
