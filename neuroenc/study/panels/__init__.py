"""Frozen panels: tasks, splits, seeds and data by hash, on which models are ranked."""
