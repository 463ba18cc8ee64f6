"""Measuring a model or a reward: evaluate, check-rewards, probe, and the statistics that they share."""
