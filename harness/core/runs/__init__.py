"""A run on disk: its folder, its checkpoints, where it starts from, how its execution was chosen."""
