"""Runners: a spec and flags to Beam options, what each can do, and the life of a run around the graph."""
