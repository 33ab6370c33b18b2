"""The item's own id among its features: where it stands, and how a tower learns to do without.

Where there is no id, items are told apart by their categories as far as they are counted.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError

# Items without an id are counted by their content; so many places keep most of them apart.
_CONTENT_PLACES = 1 << 16
_MIXER = 1_000_003  # an odd prime, so that every category moves the place


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
    if dropout > 0:
        seen = seen & (torch.rand(seen.shape, device=seen.device) >= dropout)
    if by_content:
        seen = torch.zeros_like(seen)
    shown = torch.ones_like(tokens[:, :, 0])
    shown[:, token] = seen.to(tokens.dtype)
    return tokens * shown.unsqueeze(2)


def num_counted(spec: InputSpec, place: tuple[int, int | None]) -> int:
    """Places that items are counted in; see :func:`counted_places`."""
    column, token = place
    if token is None:
        return _CONTENT_PLACES
    return spec.num_rows_by_table[spec.categorical[column].table]


def counted_places(
    spec: InputSpec, items: Batch, place: tuple[int, int | None]
) -> Int[Tensor, " B"]:
    """Where each row's item is counted: its row in the id's table, or by its categories.

    Args:
        spec: Inputs of the model.
        items: Rows; only the item side is read.
        place: As :func:`place_of_id` gives it.
    """
    column, token = place
    if token is not None:
        return items.ids[:, column].to(torch.int64)
    mixed = torch.zeros(items.num_rows, dtype=torch.int64, device=items.ids.device)
    for category in spec.categorical_of("item"):
        mixed = (mixed * _MIXER + items.ids[:, category]) % (1 << 31)
    return mixed % _CONTENT_PLACES
