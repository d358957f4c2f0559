"""The solver: from `z` to a certified point of the curve."""
