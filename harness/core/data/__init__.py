"""Data sets: loaders, splits, and preprocessing."""
