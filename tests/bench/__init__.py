"""Measurements: figures, not tests, since machines differ and are noisy."""
