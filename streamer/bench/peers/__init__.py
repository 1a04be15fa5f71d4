"""Other ways to do the daemon's work, or a part of it: each a small program of its own, compared by its CPU time.

`python -m streamer.bench.peers.NAME PORT MESSAGES QOS [SKIP]` subscribes to `bench/#` at a broker on this machine,
prints `ready`, and after so many messages a `Received` in JSON.
"""
