"""Exporting a trained network as a model of its own: the interface, and its preprocessing."""
