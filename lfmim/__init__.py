"""LFMIM-on-Ray core: models, data, training and evaluation in plain torch.

Importing it needs neither Ray nor MLflow.
"""
