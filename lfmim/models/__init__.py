"""The model (LFMIM) and its layers; one file per model."""
