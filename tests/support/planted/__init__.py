"""Faults planted into adapters, and networks that reveal them."""
