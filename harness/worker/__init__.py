"""The child process: core and exactly one adapter. It is told where a run's folder is and answers in JSON."""
