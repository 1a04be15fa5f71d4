"""Streamer: scores MQTT sensor feeds with a stateful LSTM."""

from __future__ import annotations

DISTRIBUTION = "anomaly-streamer"


def version(distribution: str = DISTRIBUTION) -> str:
    """The installed version of a package; `not installed` for a bare checkout on the path."""
    from importlib import metadata  # 20 ms that most commands can do without

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
