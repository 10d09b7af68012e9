"""Any video -> windows of frames, and frames -> a file."""
