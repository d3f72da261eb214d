"""Losses, the loop and checkpoints: plain torch, one device or torch.distributed, no Ray."""
