"""Files that survive a kill: atomic writes, locks, JSON and npz files, digests, dates, the user's cache."""
