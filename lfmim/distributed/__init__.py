"""The Ray shells around the core."""
