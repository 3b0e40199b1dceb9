"""evenbench: the core, the worker and the shell; `python -m harness` runs the command line."""
