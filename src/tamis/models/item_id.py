"""The item's own id among its features: where it stands, and how a tower learns to do without.

Where an item has no id, or none that training has seen often enough, it is counted by its content.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.nn.event_rows import event_rows

# Content is counted in so many places, which keep most of a hundred thousand items apart.
_CONTENT_PLACES = 1 << 18
_MIXER, _MASK = 0x45D9F3B, (1 << 32) - 1  # an odd number whose products are below 2 ** 63


def place_of_id(spec: InputSpec) -> tuple[int, int | None]:
    """The id's column in a batch and its place among the item's tokens, if any field is the id.

    Raises:
        ConfigError: It is not of side item.
    """
    columns = spec.categorical_of("item")
    names = [spec.categorical[column].name for column in columns]
    if not spec.item:
        return 0, None
    if spec.item not in names:
        raise ConfigError(
            f"model: field {spec.item!r} holds the item's id, so its side must be 'item'. Set side "
            f"in schema.toml."
        )
    place = names.index(spec.item)
    return columns[place], place


def hide_ids(
    tokens: Float[Tensor, "B F D"],
    items: Batch,
    place: tuple[int, int | None],
    *,
    dropout: float,
    by_content: bool,
) -> Float[Tensor, "B F D"]:
    """Tokens of items with zeros in the place of ids that say nothing, or must not.

    Where the id is all that is known of an item none is hidden at random: what is left would be the
    same for all items.

    Args:
        tokens: Of the item side.
        items: The batch that they are from.
        place: As :func:`place_of_id` gives it.
        dropout: Share of ids that are hidden at random; 0 outside training.
        by_content: Whether all are hidden, as for items that no training has seen.
    """
    column, token = place
    if token is None:
        return tokens
    # Row 0 of the table stands for all ids that training has not seen: it says nothing.
    seen = items.ids[:, column] != 0
    if dropout > 0 and tokens.shape[1] > 1:
        seen = seen & (torch.rand(seen.shape, device=seen.device) >= dropout)
    if by_content:
        seen = torch.zeros_like(seen)
    shown = torch.ones_like(tokens[:, :, 0])
    shown[:, token] = seen.to(tokens.dtype)
    return tokens * shown.unsqueeze(2)


def places_of(spec: InputSpec, place: tuple[int, int | None]) -> tuple[int, int]:
    """How many places there are for ids, and after them for content; see :func:`counted_places`."""
    column, token = place
    if token is None:
        return 0, _CONTENT_PLACES
    return spec.num_rows_by_table[spec.categorical[column].table], _CONTENT_PLACES


def counted_places(
    spec: InputSpec, items: Batch, place: tuple[int, int | None]
) -> Int[Tensor, " B"]:
    """Where each row's item is counted: its row in the id's table, or by its content.

    Row 0 of that table stands for many items, which a tower tells apart by their content as it does
    where there is no id: so does the count. Content is the categories and lists of the item side.
    Numbers change in the life of an item, which would be counted as many; they are read where there
    is nothing else.

    Args:
        spec: Inputs of the model.
        items: Rows; only the item side is read.
        place: As :func:`place_of_id` gives it.
    """
    column, token = place
    own = None if token is None else column
    places = _content(spec, items, own) % _CONTENT_PLACES
    if own is None:
        return places
    ids = items.ids[:, own].to(torch.int64)
    num_ids, _ = places_of(spec, place)
    return torch.where(ids == 0, num_ids + places, ids)


def _content(spec: InputSpec, items: Batch, own: int | None) -> Int[Tensor, " B"]:
    """A hash of what items are, the column of their own ids and the order of lists left out."""
    mixed = torch.ones(items.num_rows, dtype=torch.int64, device=items.ids.device)
    categories = [column for column in spec.categorical_of("item") if column != own]
    lists = spec.sequences_of("item")
    for column in categories:
        mixed = _mix(mixed + items.ids[:, column])
    for group in lists:
        events = items.sequences[group.name]
        of_events = mixed.new_ones(len(events.values))
        for number in range(len(group.fields)):
            of_events = _mix(of_events + events.values[:, number])
        owner = event_rows(events.offsets, len(events.values))
        total = torch.zeros_like(mixed).index_add_(0, owner, of_events)
        # Mixed once more, or what an item is and what its list holds could trade places.
        mixed = _mix(_mix(mixed) + total)
    if not categories and not lists:
        for column in spec.numeric_of("item"):
            bits = items.numeric[:, column].view(torch.int32).to(torch.int64)
            mixed = _mix(mixed + (bits & _MASK))
    return mixed


def _mix(values: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """A bijection of 32 bits in which every input bit reaches every output bit."""
    values = values & _MASK
    for _ in range(2):
        values = ((values ^ (values >> 16)) * _MIXER) & _MASK
    return values ^ (values >> 16)
