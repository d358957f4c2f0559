"""Timings of jfree beside plain implementations of what it replaces; see `README.md`."""
