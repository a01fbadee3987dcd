"""Flink: the jars, a cluster on this machine, its REST service, and a pipeline as a job on a cluster."""
