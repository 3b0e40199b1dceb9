"""A run on disk: its folder, its checkpoints, its warm start, its tuned execution."""
