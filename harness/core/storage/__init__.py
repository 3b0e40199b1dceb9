"""Files that survive a kill: atomic writes, locks, JSON and npz, digests, the user's cache."""
