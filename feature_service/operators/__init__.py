"""Raw media and text -> arrays. No Ray here, so each operator is usable and testable alone."""
