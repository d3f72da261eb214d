"""Many runs: systems, search spaces, comparison with its statistics, reports."""
