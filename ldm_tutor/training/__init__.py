"""Floor 4: the training loop, its checkpoints and the three stages."""
