"""Bytes -> readings."""
