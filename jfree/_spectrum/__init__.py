"""What is read off the curve."""
