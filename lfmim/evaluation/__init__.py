"""What became of models and data: reports, comparisons, tables and figures. Nothing here is trained or chosen by."""
