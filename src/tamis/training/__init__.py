"""Training: optimizers, the loop, checkpoints and run records."""
