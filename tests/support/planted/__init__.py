"""Faults that are planted into adapters, and networks that show them."""
