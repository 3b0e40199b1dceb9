"""Specs, data, mathematics, proofs and storage. Standard library and NumPy only: no framework, no Hydra, no
MLflow."""
