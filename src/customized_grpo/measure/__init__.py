"""Measuring a model or a reward: evaluate, check-rewards, probe, and the figures that they share."""
