"""The machine: hardware description, matrix limits, noise, and the clocks, memory and energy of a run."""
