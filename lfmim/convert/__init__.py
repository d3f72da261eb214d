"""Published checkpoints of other code -> ours."""
