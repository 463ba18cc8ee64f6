"""A run's folder: what it holds, who may write to it, checkpoints, logs, resuming."""
