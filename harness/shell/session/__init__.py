"""What one command does with its runs."""
