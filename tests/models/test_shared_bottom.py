"""Shared-Bottom against its equation."""

import numpy as np

from tamis.models.shared_bottom import SharedBottom, SharedBottomConfig


def test_towers_stand_on_one_network(reference) -> None:
    settings = SharedBottomConfig(embedding_dim=3, bottom_units=(12, 10), tower_units=(9,))
    model = reference.build(SharedBottom, settings)

    def logits(row: int) -> np.ndarray:
        x = reference.embeddings(model.inputs.tables, row)
        x = np.concatenate([*x, reference.numbers(row)])
        x = reference.mlp(model.bottom, x, num_hidden=2)
        return np.concatenate([reference.mlp(t, x, num_hidden=1) for t in model.towers.towers])

    reference.check(model, logits)
