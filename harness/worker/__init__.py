"""The child process: core and exactly one adapter. It reads tasks and writes events, both as JSON lines."""
