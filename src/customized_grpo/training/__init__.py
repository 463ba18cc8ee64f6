"""Training: the algorithm from rollout to optimiser step, and how its parts are put together."""
