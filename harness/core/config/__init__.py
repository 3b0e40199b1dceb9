"""The configuration of a run: its sections, their checks, and the run id."""
