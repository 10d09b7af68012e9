"""The life of a run: its folder, checkpoints, stops and progress."""
