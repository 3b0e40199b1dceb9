"""Tests of the adapters, and of what every adapter has to fulfil."""
