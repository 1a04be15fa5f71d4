"""Mirrors streamer/sinks."""
