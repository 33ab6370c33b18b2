"""Which field the events of a sequence are values of, and which sequences are of the same events.

Models that compare a history with the candidate can do so only where both have one embedding table.
Texts with blanks between their events are known by other columns too, and so not taken for prose.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tamis.data.columns import (
    Categories,
    Origin,
    as_categories,
    is_list,
    is_stringlike,
    split_items,
    unusable,
)
from tamis.data.encoders import split_events
from tamis.data.hashing import hash_integers
from tamis.data.schema import Field, Roles

_NEARLY_ALL = 0.95
# Where a sequence is named like the field: histories tell of more than the sample shows.
_NAMED = 0.5
# Small whole numbers of any two columns overlap by chance; so many of them do not.
_LEAST_NUMBERS = 10
# So many texts with blanks are looked at, and so large a share of all must have any.
_TEXTS_SPLIT = 5000
_LEAST_SHARE = 0.05
# Letters, then digits, as in N55189 or ad-7: the letters say of what it is the number.
_NUMBERED = r"^(?P<letters>[A-Za-z][A-Za-z_.:-]*)\d+$"
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
# "cate_id", "category" and "categories" begin alike.
_STEM = 4
# Beginnings of words that say nothing of what the events are.
_COMMON = re.compile("ids?|keys?|code|hash|hist|sequ?|list|past|last|rece|prev|user|uid")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _History:
    """One sequence field and its events in the sample."""

    field: Field
    categories: Categories
    lengths: NDArray[np.int64]
    whole_lengths: NDArray[np.int64]
    is_text: bool

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row of each event."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)


def separated_by_blanks(columns: Mapping[str, pa.Array]) -> dict[str, Field]:
    """Sequence fields for the texts whose parts between blanks are nearly all of another column.

    They are its values or, as a sample shows few items of a large catalogue, written like them.

    Args:
        columns: The sample by name, each in one chunk.
    """
    texts = {name: _parts_between_blanks(column) for name, column in columns.items()}
    parts = {name: found for name, found in texts.items() if found is not None}
    owners = {
        name: as_categories(column)
        for name, column in columns.items()
        if parts and name not in parts and _may_own(column.type)
    }
    fields = {}
    for name, categories in parts.items():
        owner = next((one for one in owners if _are_of(name, categories, one, owners[one])), "")
        if owner:
            words = len(categories.values)
            reason = f"strings of {words} different parts between blanks, as in {owner!r}"
            fields[name] = Field(name=name, kind="sequence", separator=" ", reason=reason)
    return fields


def _parts_between_blanks(column: pa.Array) -> Categories | None:
    """What is between the blanks of texts; None where few have any, or several together."""
    if not is_stringlike(column.type):
        return None
    known = column.drop_null()
    texts = known.filter(pc.match_substring(known, " "))
    if len(texts) <= _LEAST_SHARE * len(known) or pc.count_distinct(texts).as_py() < 2:
        return None
    parts = as_categories(split_items(known.slice(0, _TEXTS_SPLIT), " ").flatten())
    return parts if (parts.codes >= 0).mean() >= _NEARLY_ALL else None


def _may_own(kind: pa.DataType) -> bool:
    # A text file's 12.0 and 12 are two categories.
    return not (unusable(kind) or is_list(kind) or pa.types.is_floating(kind))


def _are_of(name: str, parts: Categories, owner_name: str, owner: Categories) -> bool:
    """Whether what is between the blanks of texts is of another column."""
    share, cover = _overlap(parts, owner)
    named = bool(_words(name) & _words(owner_name))
    if share >= _NEARLY_ALL and (named or not _overlap_by_chance(parts, owner, cover)):
        return True
    if len(owner.values) < _LEAST_NUMBERS:
        return False
    beginnings = pc.unique(_beginnings(owner.values).drop_null())
    alike = pc.is_in(_beginnings(parts.values), value_set=beginnings, skip_nulls=True)
    of_event = np.append(alike.to_numpy(zero_copy_only=False), False)[parts.codes]
    return bool(of_event.mean() >= _NEARLY_ALL)


def _beginnings(values: pa.Array) -> pa.Array:
    """The letters before the number of each value; null where it is written in another way."""
    return pc.struct_field(pc.extract_regex(values, _NUMBERED), "letters")


def link_histories(table: pa.Table, fields: Sequence[Field], roles: Roles) -> list[Field]:
    """Fields with ``shares``, ``group`` and ``side`` of sequences as far as the sample shows them.

    A sequence shares the table of the categorical field whose values nearly all of its events are,
    or half of them where both are named alike.
    It is one of the user, unless its events describe the row's own item. Sequences that are equally
    long in every row are columns of the same events.

    Args:
        table: The sample, each column in one chunk.
        fields: Inferred fields; sequences share nothing yet.
        roles: Columns with a role; no history is one of users or requests.
    """
    owners = {
        field.name: as_categories(table[field.source].chunk(0))
        for field in fields
        if field.kind == "categorical" and field.name not in (roles.user, roles.request)
    }
    histories = [_read(table, field) for field in fields if field.kind == "sequence"]
    linked = [_with_owner(history, owners, table, roles) for history in histories]
    changed = {field.name: field for field in _grouped(linked)}
    return [changed.get(field.name, field) for field in fields]


def number_doubts(table: pa.Table, fields: Sequence[Field]) -> Iterator[str]:
    """A warning for each number that events of a history without a table to share may be values of.

    Args:
        table: The sample, each column in one chunk.
        fields: Fields, as :func:`link_histories` gives them.
    """
    alone = [_read(table, item) for item in fields if item.kind == "sequence" and not item.shares]
    for item in fields if alone else ():
        column = table[item.source].chunk(0)
        if item.kind != "numeric" or not pa.types.is_integer(column.type):
            continue
        values = as_categories(column)
        for history in alone:
            share, cover = _overlap(history.categories, values)
            if share >= _NEARLY_ALL and not _overlap_by_chance(history.categories, values, cover):
                yield (
                    f"{item.name}: taken as a number, but {share:.0%} of the events of "
                    f"{history.field.name!r} are values of it; if these are ids, set "
                    f"kind = 'categorical' for it, and shares = {item.name!r} for the history"
                )


def _read(table: pa.Table, field: Field) -> _History:
    events = split_events(table, field, origin=Origin(file=""))
    return _History(
        field=field,
        categories=as_categories(events.values),
        lengths=events.lengths,
        whole_lengths=events.whole_lengths,
        is_text=is_stringlike(events.values.type),
    )


def _with_owner(
    history: _History, owners: dict[str, Categories], table: pa.Table, roles: Roles
) -> _History:
    best: tuple[tuple[bool, bool, float], str, float] | None = None
    for name, owner in owners.items():
        # A text file's 12.0 and 12 are two categories.
        if history.is_text and pa.types.is_floating(table[name].type):
            continue
        named = bool(_words(history.field.name) & _words(name))
        share, cover = _overlap(history.categories, owner)
        # Of a large catalogue a sample shows few items, and its histories show most of these.
        if max(share, cover) < _NAMED if named else share < _NEARLY_ALL:
            continue
        if not named and _overlap_by_chance(history.categories, owner, cover):
            continue
        rank = (named, name == roles.item, cover)
        if best is None or rank > best[0]:
            best = (rank, name, share)
    if best is None:
        return history
    (named, _, _), name, share = best
    alike = ", named alike" if named else ""
    reason = f"{history.field.reason}; {share:.0%} of its events are values of {name!r}{alike}"
    field = replace(history.field, shares=name, reason=reason)
    if not _is_of_the_row(history, owners[name], owners.get(roles.item)):
        field = replace(field, side="user")
    return replace(history, field=field)


def _words(name: str) -> set[str]:
    stems = {word.lower()[:_STEM] for word in _WORD.findall(name)}
    return {stem for stem in stems if not _COMMON.fullmatch(stem)}


def _overlap(events: Categories, owner: Categories) -> tuple[float, float]:
    """Share of the events that are values of the owner, and of its values that are events."""
    counts = np.bincount(events.codes[events.codes >= 0], minlength=len(events.values))
    if not counts.sum() or not len(owner.values):
        return 0.0, 0.0
    found = _places(events.values, owner.values) >= 0
    return float(counts[found].sum() / counts.sum()), float(found.sum() / len(owner.values))


def _overlap_by_chance(events: Categories, owner: Categories, cover: float) -> bool:
    """Whether events may be values of an owner only because both are small whole numbers."""
    return _are_numbers(owner.values) and (cover < 0.5 or len(events.values) < _LEAST_NUMBERS)


def _places(values: pa.Array, among: pa.Array) -> NDArray[np.int64]:
    """Position of each value among others; -1 where it is not there."""
    found = pc.index_in(values.cast(pa.string()), value_set=among.cast(pa.string()))
    places: NDArray[np.int64] = pc.fill_null(found.cast(pa.int64()), -1).to_numpy()
    return places


def _are_numbers(values: pa.Array) -> bool:
    return bool(pc.all(pc.match_substring_regex(values, r"^-?\d+$")).as_py())


def _is_of_the_row(history: _History, owner: Categories, item: Categories | None) -> bool:
    """Whether a sequence describes the row's own item, as its tags do, and is no history.

    It then holds the row's own value in nearly every row, or is the same in all rows of an item.
    """
    rows, codes = history.rows, history.categories.codes
    places = np.append(_places(history.categories.values, owner.values), -1)[codes]
    holds = np.zeros(len(history.lengths), bool)
    holds[rows[(places == owner.codes[rows]) & (places >= 0)]] = True
    if holds[history.lengths > 0].mean() >= _NEARLY_ALL:
        return True
    if item is None or 2 * len(item.values) > len(item.codes):
        return False
    ends = np.cumsum(history.lengths)
    places_from_end = np.repeat(ends, history.lengths) - np.arange(len(rows))
    # One number for what a row holds, in what order.
    contents = hash_integers(codes * 1000 + places_from_end) % np.uint64(1 << 32)
    sums = np.bincount(rows, weights=contents.astype(np.float64), minlength=len(ends))
    pairs = np.unique(np.stack([item.codes.astype(np.float64), sums]), axis=1).shape[1]
    return bool(pairs == len(np.unique(item.codes)))


def _grouped(histories: Sequence[_History]) -> list[Field]:
    """Their fields, with the group of those that are equally long in every row."""
    members: dict[int, list[_History]] = {}
    for place, history in enumerate(histories):
        head = next((h for h in members if _go_together(histories[h], history)), place)
        members.setdefault(head, []).append(history)
    fields = []
    for group in members.values():
        first, is_user = group[0].field, any(one.field.side == "user" for one in group)
        for one in group:
            field = replace(one.field, side="user") if is_user else one.field
            if len(group) > 1:
                beside = next(other.field.name for other in group if other is not one)
                reason = f"{field.reason}; as long as {beside!r} in every row"
                field = replace(field, group=first.name, reason=reason)
            fields.append(field)
    return fields


def _go_together(first: _History, second: _History) -> bool:
    if not np.array_equal(first.whole_lengths, second.whole_lengths):
        return False
    # Lists of one fixed length agree whatever they hold.
    varies = len(np.unique(first.whole_lengths)) > 1
    return varies or first.field.side == second.field.side == "user"
