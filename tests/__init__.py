"""The test suite. A package, so that tests and the child processes of `tests.support.adapter_process` name
its modules alike."""
