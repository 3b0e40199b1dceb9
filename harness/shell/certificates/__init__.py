"""Certificates and equivalence: made, kept, and said of runs."""
