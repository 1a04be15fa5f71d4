"""The forecaster: pure arrays and tensors, no I/O but weight files."""
