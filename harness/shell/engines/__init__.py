"""Engines execute runs: in workers on this machine, or on a cluster."""
