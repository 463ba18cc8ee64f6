"""What a run executes on: device, processes, launchers, memory, signals."""
