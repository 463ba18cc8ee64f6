"""Customized-GRPO: reinforcement learning for subject-driven image generation."""
