"""Features of requests: bit for bit what the encoders make of the same rows as a table."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tamis.data.columns import Origin
from tamis.data.encoders import Encoders, EncodersFit
from tamis.data.loader import batches_of_rows
from tamis.data.schema import Field, Roles, Schema, Task
from tamis.errors import DataError
from tamis.serving import request_encoder
from tamis.serving.columns import Columns
from tamis.serving.request_encoder import RequestEncoder

FIELDS = (
    Field(name="user", kind="categorical", side="user"),
    Field(name="device", kind="categorical", side="context"),
    Field(name="city", kind="categorical", side="user", encoding="hash", num_buckets=7),
    Field(name="age", kind="numeric", side="user", transform="log"),
    Field(name="hour", kind="numeric", side="context", transform="bucket", num_buckets=4),
    Field(name="ad", kind="categorical", side="item"),
    Field(name="price", kind="numeric", side="item", transform="standardise"),
    Field(name="kind", kind="categorical", side="item"),
    Field(name="past", kind="sequence", side="user", shares="ad", group="h", max_length=3),
    Field(name="kinds", kind="sequence", side="user", shares="kind", group="h", max_length=3),
)
TEXT = Field(name="query", kind="text", side="context", max_length=4)


def _encoders(fields: tuple[Field, ...]) -> Encoders:
    schema = Schema(
        fields=fields,
        tasks=(Task(name="click"),),
        roles=Roles(user="user", item="ad"),
    )
    fit = EncodersFit(schema)
    table: dict[str, Any] = {
        "user": ["u0", "u1", "u2"],
        "device": ["phone", "7", "ö"],
        "city": ["x", "y", "z"],
        "age": [3.0, 40.0, 5.0],
        "hour": [1.0, 12.0, 20.0],
        "ad": ["a0", "a1", "a2"],
        "price": [1.0, 2.0, 9.0],
        "kind": ["k0", "k1", "k0"],
        "past": [["a0"], ["a1", "a2"], []],
        "kinds": [["k0"], ["k1", "k0"], []],
        "query": ["red shoes", "blue", ""],
    }
    fit.add(pa.table(table), origin=Origin(file="log"))
    return fit.finish()


_TEXTS = st.sampled_from(["u0", "u1", "phone", "7", "ö", "a0", "a2", "k1", "none of them", ""])
_NUMBERS = st.floats(-1e6, 1e6) | st.none()
_EVENTS = st.lists(st.tuples(_TEXTS, _TEXTS), max_size=5)


@st.composite
def _rows(draw: Any) -> list[dict[str, Any]]:
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        row: dict[str, Any] = {}
        for name in ("user", "device", "city"):
            if draw(st.booleans()):
                row[name] = draw(_TEXTS | st.none())
        for name in ("age", "hour"):
            if draw(st.booleans()):
                row[name] = draw(_NUMBERS)
        if draw(st.booleans()):
            events = draw(_EVENTS)
            row |= {"past": [one for one, _ in events], "kinds": [other for _, other in events]}
        if draw(st.booleans()):
            row["query"] = draw(st.sampled_from(["Red, shoes!", "", "a b c d e f"]))
        rows.append(row)
    return rows


def _check_equal(encoders: Encoders, rows: list[dict[str, Any]]) -> None:
    known = {item.source for item in encoders.schema.fields}
    rows = [{name: row[name] for name in row if name in known} for row in rows]
    whole = encoders.encode(
        Columns(encoders.schema).table(rows), first_row=0, origin=Origin(file="x"), inputs_only=True
    )
    wanted = list(batches_of_rows(whole, encoders.spec, batch_size=1))

    found = RequestEncoder(encoders).encode(rows)

    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        for name in ("ids", "numeric", "weights"):
            assert getattr(ours, name).dtype == getattr(theirs, name).dtype
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
        for group, history in theirs.sequences.items():
            assert torch.equal(ours.sequences[group].values, history.values)
            assert torch.equal(ours.sequences[group].offsets, history.offsets)


@given(_rows())
def test_features_are_those_of_the_encoders(rows: list[dict[str, Any]]) -> None:
    _check_equal(_encoders(FIELDS), rows)


@given(_rows())
def test_fields_that_must_be_split_are_left_to_the_encoders(rows: list[dict[str, Any]]) -> None:
    _check_equal(_encoders((*FIELDS, TEXT)), rows)


def test_large_vocabularies_are_asked_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_encoder, "_SMALL", 0)
    row = {"user": "u1", "device": "ö", "past": ["a2", "b"], "kinds": ["k0", ""]}

    _check_equal(_encoders(FIELDS), [row, {}, {"user": None, "device": "u1"}])


def test_known_row() -> None:
    (batch,) = RequestEncoder(_encoders(FIELDS)).encode(
        [{"user": "u2", "past": ["a0", "a0", "a1", "b"], "kinds": ["k0", "k0", "k1", "k0"]}]
    )

    # Row 0 is what is unknown; users, seen once each, are in the order of their texts. Ads are
    # counted with those of histories: a0 and a1 and a2 twice each.
    assert batch.ids[0, 0] == 3
    # Three events are kept, the newest.
    assert batch.sequences["h"].values[:, 0].tolist() == [1, 2, 0]
    assert np.isfinite(batch.numeric.numpy()).all()


# Of five and of four events the last three are kept.
@pytest.mark.parametrize(("past", "kinds"), [(1, 0), (5, 4)])
def test_histories_that_do_not_go_together_are_refused(past: int, kinds: int) -> None:
    with pytest.raises(DataError, match=r"must have as many events, got others in 'kinds'"):
        RequestEncoder(_encoders(FIELDS)).encode([{"past": ["a0"] * past, "kinds": ["k0"] * kinds}])
