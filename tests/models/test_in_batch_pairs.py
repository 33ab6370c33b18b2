"""Features of pairs that no row holds: a slow reference, and what nobody can know."""

from dataclasses import replace
from math import log1p

import pytest
import torch

from tamis.data.batch import Batch, Jagged
from tamis.data.schema import CategoricalInput, InputSpec, SequenceInput, Table
from tamis.errors import ConfigError
from tamis.models.in_batch_pairs import InBatchPairs

_KINDS = 5
_SPEC = InputSpec(
    numeric=("age", "same_kind", "same_brand"),
    numeric_sides=("user", "context", "context"),
    numeric_counts=("", "past_kind", "past_brand"),
    categorical=(
        CategoricalInput(name="user", table="user", side="user"),
        CategoricalInput(name="brand", table="brand", side="item"),
        CategoricalInput(name="kind", table="kind", side="item"),
    ),
    sequences=(
        SequenceInput(
            name="past",
            fields=("past_kind", "past_brand"),
            tables=("kind", "brand"),
            max_length=9,
            side="user",
        ),
    ),
    tables=tuple(Table(name=name, num_rows=_KINDS) for name in ("user", "brand", "kind")),
    tasks=(),
)


def _rows(count: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 10, (count,), generator=generator)
    lengths[0] = 0
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    events = torch.randint(_KINDS, (int(offsets[-1]), 2), generator=generator)
    return Batch(
        numeric=torch.randn(count, 3, generator=generator),
        ids=torch.randint(_KINDS, (count, 3), generator=generator),
        labels=torch.zeros(count, 0),
        weights=torch.ones(count),
        sequences={"past": Jagged(values=events, offsets=offsets)},
    )


def test_counts_equal_a_slow_loop_over_pairs_that_may_repeat() -> None:
    rows = _rows(12)
    generator = torch.Generator().manual_seed(1)
    users, items = torch.randint(12, (2, 40), generator=generator)
    found = InBatchPairs(_SPEC).batch(rows, users, items)

    offsets, events = rows.sequences["past"].offsets, rows.sequences["past"].values
    for pair, (user, item) in enumerate(zip(users.tolist(), items.tolist(), strict=True)):
        own = events[offsets[user] : offsets[user + 1]].tolist()
        # Row 0 is out of vocabulary: two such categories need not be the same.
        kinds = sum(kind == int(rows.ids[item, 2]) != 0 for kind, _ in own)
        brands = sum(brand == int(rows.ids[item, 1]) != 0 for _, brand in own)
        expected = torch.tensor([0.0, log1p(kinds), log1p(brands)])
        torch.testing.assert_close(found.numeric[pair], expected)


def test_nothing_is_known_of_other_context() -> None:
    unsaid = replace(_SPEC, numeric_counts=())
    with pytest.raises(ConfigError, match=r"of other pairs, got 'same_kind'. Say in schema.toml"):
        InBatchPairs(unsaid)
    hour = CategoricalInput(name="hour", table="user", side="context")
    with pytest.raises(ConfigError, match="got 'hour'"):
        InBatchPairs(replace(_SPEC, categorical=(*_SPEC.categorical, hour)))


def test_a_model_without_context_has_empty_pairs() -> None:
    spec = replace(_SPEC, numeric_sides=("user", "user", "user"), numeric_counts=())
    pairs = InBatchPairs(spec).batch(_rows(3), torch.tensor([0, 1]), torch.tensor([2, 2]))

    assert pairs.num_rows == 2
    assert not pairs.numeric.any()
