"""Numerics that know nothing of spectra."""
