"""What a run costs, before it is started: passes, FLOPs and memory. No weights are loaded."""
