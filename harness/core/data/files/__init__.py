"""Data sets that ship with the package; SOURCES.md has origins and licences."""
