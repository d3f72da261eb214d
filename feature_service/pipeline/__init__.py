"""Manifest -> stages -> feature store, and features -> predictions, on Ray Data."""
