"""What a run runs on: device, processes, launchers, memory, signals."""
