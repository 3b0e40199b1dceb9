"""The base of worker, shell and adapters: network specs, data, training rules, certificates, run folders.

It uses the standard library and NumPy only: no framework, no Hydra, no MLflow.
"""
