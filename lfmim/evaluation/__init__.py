"""The only reader of the test split: reports, tables and figures."""
