"""Worker processes as the shell sees them."""
