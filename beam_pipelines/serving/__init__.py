"""Serving: what a pipeline's outputs hold, as SQL. Loads no Beam."""
