"""The spec: frozen models of the YAML, and errors that say where. Loads neither pyarrow nor Beam."""
