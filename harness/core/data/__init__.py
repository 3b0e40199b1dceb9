"""Data sets: where rows come from, how they are split, and what is fitted to them."""
