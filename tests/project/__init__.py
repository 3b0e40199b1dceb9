"""Tests of the project itself: layout, documentation, packaging."""
