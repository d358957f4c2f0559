"""Forward passes of wide networks."""
