"""The calculus: curves, and operations on them."""
