"""Worker processes, as the shell starts and uses them."""
