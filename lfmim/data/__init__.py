"""From feature stores to batches, and the demo corpus."""
