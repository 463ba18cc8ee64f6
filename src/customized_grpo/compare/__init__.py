"""Comparisons: arms over seeds on equal terms, and what they show."""
