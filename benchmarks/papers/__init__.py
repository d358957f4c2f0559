"""Published figures and tables, reproduced: one module per paper."""
