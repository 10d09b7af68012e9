"""Where a run computes: device, processes, sharding."""
