"""A spec as a job of Google Dataflow: checked, handed in, followed; and as a flex template that others start."""
