"""Files: written so that a crash leaves the old or the new one, read without running or guessing anything."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]  # where this package is installed
