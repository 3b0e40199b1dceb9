"""The machine: what it is, how fast it multiplies, how noisy it is, how its time and energy are measured."""
