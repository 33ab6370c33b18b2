"""Tensor blocks that models are made of."""
