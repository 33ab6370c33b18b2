"""The item's id: where it is, and when its token is zero."""

from dataclasses import replace

import pytest
import torch

from tamis.data.batch import Batch, Jagged, blank_batch
from tamis.data.schema import CategoricalInput, InputSpec, SequenceInput, Table
from tamis.errors import ConfigError
from tamis.models.item_id import counted_places, hide_ids, place_of_id, places_of
from tamis.nn.frequency import StreamingFrequency

_SPEC = InputSpec(
    numeric=(),
    categorical=(
        CategoricalInput(name="user", table="user", side="user"),
        CategoricalInput(name="kind", table="kind", side="item"),
        CategoricalInput(name="item", table="item", side="item"),
    ),
    sequences=(),
    tables=tuple(Table(name=name, num_rows=9) for name in ("user", "kind", "item")),
    tasks=(),
    item="item",
)


def test_place_is_that_among_all_categories_and_among_those_of_the_item() -> None:
    assert place_of_id(_SPEC) == (2, 1)
    assert place_of_id(replace(_SPEC, item="")) == (0, None)
    with pytest.raises(ConfigError, match="'user' holds the item's id, so its side must be 'item'"):
        place_of_id(replace(_SPEC, item="user"))


def test_unseen_ids_are_zero_and_all_are_where_content_decides() -> None:
    batch = blank_batch(_SPEC, 4, torch.device("cpu"))
    batch.ids[:, 2] = torch.tensor([3, 0, 5, 0])
    tokens = torch.ones(4, 2, 3)
    shown = hide_ids(tokens, batch, (2, 1), dropout=0.0, by_content=False)

    assert shown[:, 1].sum(1).tolist() == [3, 0, 3, 0]
    assert torch.equal(shown[:, 0], tokens[:, 0])
    hidden = hide_ids(tokens, batch, (2, 1), dropout=0.0, by_content=True)
    assert not hidden[:, 1].any()
    assert hide_ids(tokens, batch, (0, None), dropout=0.5, by_content=True) is tokens


def test_dropout_hides_its_share_of_ids() -> None:
    batch = blank_batch(_SPEC, 4000, torch.device("cpu"))
    batch.ids[:, 2] = 7
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shown = hide_ids(torch.ones(4000, 2, 1), batch, (2, 1), dropout=0.3, by_content=False)

    # Four standard deviations of a share of 4000 draws.
    assert shown[:, 1].mean().item() == pytest.approx(0.7, abs=4 * (0.3 * 0.7 / 4000) ** 0.5)


def test_dropout_hides_no_id_that_is_all_that_is_known() -> None:
    batch = blank_batch(_SPEC, 40, torch.device("cpu"))
    batch.ids[:, 2] = torch.arange(40) % 4
    tokens = torch.ones(40, 1, 2)
    shown = hide_ids(tokens, batch, (2, 0), dropout=0.9, by_content=False)

    assert shown[:, 0, 0].tolist() == [0.0, 1.0, 1.0, 1.0] * 10
    assert not hide_ids(tokens, batch, (2, 0), dropout=0.0, by_content=True).any()


# With lists and numbers of the item, and numbers of others.
_WIDE = replace(
    _SPEC,
    numeric=("age", "price"),
    numeric_sides=("user", "item"),
    sequences=(
        SequenceInput(name="past", fields=("past",), tables=("kind",), max_length=9, side="user"),
        SequenceInput(
            name="tags", fields=("tag", "of"), tables=("kind", "user"), max_length=9, side="item"
        ),
    ),
)


def _wide(rows: int, seed: int = 0) -> Batch:
    """Random rows of few values, so that many are alike."""
    generator = torch.Generator().manual_seed(seed)
    batch = blank_batch(_WIDE, rows, torch.device("cpu"))
    batch.ids.copy_(torch.randint(3, (rows, 3), generator=generator))
    batch.numeric.copy_(torch.randint(3, (rows, 2), generator=generator))
    offsets = torch.cat([torch.zeros(1), torch.randint(3, (rows,), generator=generator)]).cumsum(0)
    sequences = {
        group.name: Jagged(
            values=torch.randint(
                1, 4, (int(offsets[-1]), len(group.fields)), generator=generator
            ).int(),
            offsets=offsets.long(),
        )
        for group in _WIDE.sequences
    }
    return replace(batch, ids=batch.ids.int(), sequences=sequences)


def _tags(batch: Batch, row: int) -> list[tuple[int, ...]]:
    tags = batch.sequences["tags"]
    return sorted(map(tuple, tags.values[tags.offsets[row] : tags.offsets[row + 1]].tolist()))


def test_items_are_counted_by_their_ids_and_without_one_by_their_categories_and_lists() -> None:
    batch = _wide(300)
    place = place_of_id(_WIDE)
    places = counted_places(_WIDE, batch, place)
    alone = counted_places(replace(_WIDE, item=""), batch, (0, None))
    content = [(int(batch.ids[row, 1]), _tags(batch, row)) for row in range(300)]
    of_items = [int(batch.ids[row, 2]) or content[row] for row in range(300)]
    by_all = [(int(batch.ids[row, 2]), content[row]) for row in range(300)]

    for found, expected in ((places, of_items), (alone, by_all)):
        same = torch.tensor([[one == other for other in expected] for one in expected])
        assert torch.equal(found[:, None] == found[None, :], same)
    known = batch.ids[:, 2] > 0
    assert torch.equal(places[known], batch.ids[known, 2].long())
    assert int(places[~known].min()) >= places_of(_WIDE, place)[0] == 9
    assert int(places.max()) < sum(places_of(_WIDE, place))
    assert int(alone.max()) < sum(places_of(replace(_WIDE, item=""), (0, None)))


def test_items_that_are_nothing_but_numbers_are_counted_by_them() -> None:
    spec = replace(_WIDE, sequences=(), categorical=(_SPEC.categorical[0], _SPEC.categorical[2]))
    batch = _wide(300)
    batch = replace(batch, ids=batch.ids[:, ::2] * 0)
    places = counted_places(spec, batch, place_of_id(spec))

    assert torch.equal(
        places[:, None] == places[None, :], batch.numeric[:, 1, None] == batch.numeric[None, :, 1]
    )


def test_few_of_many_contents_share_a_place() -> None:
    spec = replace(_WIDE, sequences=())
    batch = blank_batch(spec, 20_000, torch.device("cpu"))
    batch.ids[:, 1] = torch.arange(20_000)
    places = counted_places(spec, batch, place_of_id(spec))

    # Of 20,000 balls in 2 ** 18 places, 1 - 19,999 / 2 / 2 ** 18 = 96 % have no ball before them.
    assert len(places.unique()) > 19_000


def test_item_of_row_0_has_its_own_share() -> None:
    # Half of the rows are of two known items; 50 that are not known, told apart by their kind, make
    # up the other half. Taken for one item, each of them would have a share of 1/2.
    shares = torch.cat([torch.full((2,), 0.25), torch.full((50,), 0.01)])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(shares, 40_000, replacement=True, generator=generator)
    batch = blank_batch(_SPEC, 40_000, torch.device("cpu"))
    batch.ids[:, 2] = torch.where(drawn < 2, drawn + 1, 0)
    batch.ids[:, 1] = torch.where(drawn < 2, 3, drawn)
    frequency = StreamingFrequency(*places_of(_SPEC, place_of_id(_SPEC)), rate=0.02)
    places = counted_places(_SPEC, batch, place_of_id(_SPEC))
    frequency.observe(places)

    apart = frequency.log_share(places) - shares[drawn].log()
    # A standard deviation of an estimate is sqrt(0.02 / 2) = 0.1.
    assert apart.abs().max().item() < 5 * 0.1
