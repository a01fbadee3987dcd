"""Sources: where raw batches come from."""
