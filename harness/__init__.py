"""The core, the worker and the shell of evenbench; `python -m harness` is the command line."""
