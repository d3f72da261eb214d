"""Recordings of any length: who speaks when, whose face is seen, and what comes of it over time."""
