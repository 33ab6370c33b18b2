"""Tokens of one side: the right inputs in the right order, and none of another side."""

from dataclasses import replace

import torch

from tamis.data.batch import Jagged
from tamis.nn.embedding import FieldTokens
from tamis.nn.side_tokens import SideTokens
from tamis.testing.models import example_batch, example_spec


def test_sides_share_out_the_tokens_of_all_inputs() -> None:
    spec = example_spec(num_numeric=4, num_categorical=5)
    batch = example_batch(spec)
    sides, whole = SideTokens(spec, 3), FieldTokens(spec, 3)
    whole.load_state_dict(sides.state_dict())
    with torch.no_grad():
        for module in (sides, whole):
            module.numeric_bias.copy_(torch.arange(12.0).view(4, 3))

    # All tokens stand in the order fields 0 to 4, events 5 and 6, numbers 7 to 10; sides take turns
    # and the history is the user's.
    tokens = whole(batch)
    for side, places in (
        ("user", [0, 3, 5, 6, 7, 10]),
        ("item", [1, 4, 8]),
        ("context", [2, 9]),
    ):
        assert sides.num_tokens[side] == len(places)
        assert torch.equal(sides(batch, side), tokens[:, places])


def test_a_side_reads_nothing_of_the_others() -> None:
    spec = example_spec()
    batch = example_batch(spec)
    sides = SideTokens(spec, 3)
    blank = replace(
        batch,
        ids=batch.ids * torch.tensor([0, 1, 0], dtype=torch.int32),
        numeric=batch.numeric * torch.tensor([0.0, 1.0]),
        sequences={
            "history": Jagged(
                values=torch.zeros(0, 2, dtype=torch.int32), offsets=torch.zeros(41).long()
            )
        },
    )

    assert torch.equal(sides(blank, "item"), sides(batch, "item"))
    assert not torch.equal(sides(blank, "user"), sides(batch, "user"))


def test_a_side_without_inputs_has_no_token() -> None:
    spec = example_spec(num_categorical=2, num_numeric=2)

    assert SideTokens(spec, 3)(example_batch(spec), "context").shape == (40, 0, 3)
