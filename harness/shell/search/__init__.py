"""Searches with Optuna: trials that become runs, kept and resumed."""
