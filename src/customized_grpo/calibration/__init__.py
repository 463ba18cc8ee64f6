"""What the rewards of a run give to bad and to good pictures: measuring it, and the file that keeps it."""
