"""What users arrive with -> manifests and feature stores, one file per format (docs/data.md)."""
