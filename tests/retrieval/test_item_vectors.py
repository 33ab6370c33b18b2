"""Vectors of a corpus: their order, and what is refused."""

from typing import Any

import pytest
import torch

from tamis.errors import DataError
from tamis.retrieval.item_vectors import ItemEncoder, ItemVectors


def test_vectors_are_in_the_order_of_ids_and_places_find_them() -> None:
    items = ItemVectors.of(torch.tensor([9, 4, 7]), torch.tensor([[9.0], [4.0], [7.0]]))

    assert items.ids.tolist() == items.vectors.flatten().tolist() == [4, 7, 9]
    assert items.places(torch.tensor([9, 4])).tolist() == [2, 0]
    with pytest.raises(DataError, match="ids must be of the corpus, got 8"):
        items.places(torch.tensor([4, 8]))


@pytest.mark.parametrize(
    ("ids", "message"), [([], "must hold an item, got none"), ([3, 3], "got 3 twice")]
)
def test_impossible_corpora_are_refused(ids: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ItemVectors.of(torch.tensor(ids, dtype=torch.int64), torch.zeros(len(ids), 2))


def test_parts_of_a_corpus_are_one_corpus(world: Any) -> None:
    ids = torch.arange(1, 31)
    parts = [(part, world.features(part)) for part in ids.flip(0).split(7)]
    whole = ItemVectors.encode(world.model, [(ids, world.features(ids))])
    found = ItemVectors.encode(world.model, parts)

    assert isinstance(world.model, ItemEncoder)
    assert torch.equal(found.ids, whole.ids)
    torch.testing.assert_close(found.vectors, whole.vectors)
    assert not found.vectors.requires_grad
    with pytest.raises(DataError, match="must hold an item, got none"):
        ItemVectors.encode(world.model, [])


def test_features_without_ids_and_a_model_in_training_are_refused(world: Any) -> None:
    ids = torch.arange(1, 4)
    with pytest.raises(DataError, match="as many as rows of features, got 2 and 3"):
        ItemVectors.encode(world.model, [(ids[:2], world.features(ids))])
    broken = world.features(ids)
    broken.numeric[1, 1] = torch.nan
    with pytest.raises(DataError, match="item 2 must have a finite vector"):
        ItemVectors.encode(world.model, [(ids, broken)])
    world.model.train()
    with pytest.raises(ValueError, match="must be in evaluation mode"):
        ItemVectors.encode(world.model, [(ids, world.features(ids))])
