"""Reports of models, systems, labels and stores; the test for promotion; model cards, tables and figures."""
