"""The item's id: where it is, and when its token is zero."""

from dataclasses import replace

import pytest
import torch

from tamis.data.batch import blank_batch
from tamis.data.schema import CategoricalInput, InputSpec, Table
from tamis.errors import ConfigError
from tamis.models.item_id import counted_places, hide_ids, num_counted, place_of_id

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


def test_items_are_counted_by_their_ids_and_without_one_by_their_categories() -> None:
    batch = blank_batch(_SPEC, 24, torch.device("cpu"))
    batch.ids.copy_(torch.randint(9, (24, 3), generator=torch.Generator().manual_seed(0)))

    assert torch.equal(counted_places(_SPEC, batch, place_of_id(_SPEC)), batch.ids[:, 2])
    assert num_counted(_SPEC, place_of_id(_SPEC)) == 9
    without = replace(_SPEC, item="")
    places = counted_places(without, batch, place_of_id(without))
    same = (batch.ids[:, None, 1:] == batch.ids[None, :, 1:]).all(2)
    assert torch.equal(places[:, None] == places[None, :], same)
    assert int(places.max()) < num_counted(without, place_of_id(without))
