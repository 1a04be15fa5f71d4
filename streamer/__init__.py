"""Streamer: scores MQTT sensor feeds with a stateful LSTM."""
