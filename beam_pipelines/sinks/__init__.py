"""Destinations: files staged by the workers, and one commit at the end of the graph that makes them visible."""
