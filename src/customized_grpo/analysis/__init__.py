"""Reads what runs left behind; nothing in training calls it."""
