"""Stock paho with an empty callback."""

from streamer.bench.peers.receiving import by_paho

if __name__ == "__main__":
    by_paho(None)
