"""From checked configurations to runs that can start."""
