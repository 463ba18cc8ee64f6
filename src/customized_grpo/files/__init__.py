"""Files: written so that a crash leaves the old or the new version, read without executing or guessing anything."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]  # where this package is installed
