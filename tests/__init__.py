"""The test suite. A package, so that tests and the child processes of `tests.lab` name its modules alike."""
