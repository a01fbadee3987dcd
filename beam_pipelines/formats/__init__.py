"""Formats: bytes to batches and back. A bad record never costs a good one. Imports no Beam."""
