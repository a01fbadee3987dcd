"""Pure functions on one RecordBatch: cast, checks, keys, windows, partial aggregates. Imports no Beam."""
