"""Tests of whole commands in real processes."""
