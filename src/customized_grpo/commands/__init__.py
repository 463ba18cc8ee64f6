"""Commands that are not measurements: demo and generate."""
