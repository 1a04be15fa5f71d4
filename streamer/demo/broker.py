"""The embedded broker: rumqttd in a child process of its own, by iotcore; MQTT 5 on loopback and nothing else."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamer.errors import ServiceError, StreamerError

HOST = "127.0.0.1"

# A listener is for one version of MQTT. A segment is what the broker keeps of each filter for slow readers.
CONFIGURATION = """\
id = 0

[router]
id = 0
max_connections = 64
max_outgoing_packet_count = 200
max_segment_size = 1048576
max_segment_count = 16

[v5.1]
name = "demo"
listen = "{host}:{port}"
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 1048576
max_inflight_count = 200
dynamic_filters = true
"""


@contextmanager
def broker(directory: Path, port: int) -> Iterator[int]:
    """A broker that listens while the block lasts; gives its port. A `port` of 0 takes a free one.

    Raises StreamerError where iotcore is not installed, ServiceError for a port in use.
    """
    try:
        from iotcore import Broker
    except ImportError as error:
        raise StreamerError(
            "the embedded broker is not installed; expected iotcore: pip install 'anomaly-streamer[demo]'"
        ) from error
    port = port or _free_port()
    configuration = directory / "broker.toml"
    configuration.write_text(CONFIGURATION.format(host=HOST, port=port))
    try:
        # It takes the port from the file, but asks for one all the same.
        server = Broker(config_path=str(configuration), port=port, listen=HOST).start()
    except OSError as error:
        raise ServiceError(
            f"the broker cannot listen on {HOST}:{port}: {error}; expected a port that is free: --port"
        ) from error
    try:
        yield port
    finally:
        server.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
