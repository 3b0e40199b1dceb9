"""Tests of harness/shell."""
