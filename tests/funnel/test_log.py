"""Requests of a log: every impression once, features of the first row, refusals."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from tamis.data.batch import Batch
from tamis.data.columns import as_codes
from tamis.data.dataset import Dataset, DatasetWriter, EncodedRows
from tamis.data.ingest import ingest
from tamis.data.loader import Loader
from tamis.data.market import simulate
from tamis.data.market.schema import market_schema
from tamis.data.schema import Field, InputSpec, Schema
from tamis.errors import DataError
from tamis.evaluation import LogLossAccumulator
from tamis.funnel import log
from tamis.funnel.ads import AdTable
from tamis.funnel.funnel import Funnel, Step
from tamis.funnel.log import count_requests, logged_ads, logged_requests
from tamis.funnel.ranker import AdFeatures, RankerStage
from tamis.funnel.replay import Reference, replay
from tamis.models.deepfm import DeepFM, DeepFMConfig

# Codes of the ads, in no order, as hashes are.
_CODES = np.array([70, 10, 90, 30, 50])
_SIZES = (3, 1, 4, 2, 5, 1, 1, 6)


def _rows() -> EncodedRows:
    generator = np.random.default_rng(3)
    count = sum(_SIZES)
    request = np.repeat(1000 - np.arange(len(_SIZES)), _SIZES)
    lengths = generator.integers(0, 4, count).astype(np.int64)
    return EncodedRows(
        row=np.arange(count),
        numeric={"price": np.arange(count, dtype=np.float32)},
        ids={
            "user": (request % 40).astype(np.int32),
            "item": generator.integers(0, 30, count).astype(np.int32),
        },
        sequences={
            "past": (
                generator.integers(0, 30, (int(lengths.sum()), 1)).astype(np.int32),
                lengths,
            )
        },
        labels={
            "click": generator.integers(0, 2, count).astype(np.float32),
            "buy": np.full(count, np.nan, np.float32),
        },
        roles={
            "request": request.astype(np.int64),
            "item": _CODES[generator.integers(0, 5, count)],
            "user": request.astype(np.int64) * 7,
            "time": np.arange(count, dtype=np.int64) * 11,
        },
    )


def _dataset(rows: EncodedRows, out: Path, schema: Schema, spec: InputSpec) -> Dataset:
    with DatasetWriter(out, schema, spec) as writer:
        (writer.encoders_path / "encoders.json").write_text("{}")
        writer.append("test", rows)
        return writer.finish({})


@pytest.mark.parametrize("rows_at_a_time", [1, 2, 3, 4096])
def test_every_impression_is_in_its_request_once(
    tmp_path: Path,
    schema: Schema,
    spec: InputSpec,
    monkeypatch: pytest.MonkeyPatch,
    rows_at_a_time: int,
) -> None:
    rows = _rows()
    split = _dataset(rows, tmp_path / "data", schema, spec).split("test")
    # Requests then lie across batches, some across several.
    monkeypatch.setattr(log, "_ROWS_AT_A_TIME", rows_at_a_time)

    requests = list(logged_requests(split, spec, _CODES))

    assert [request.slots for request in requests] == list(_SIZES)
    first = 0
    bounds = np.concatenate([[0], np.cumsum(rows.sequences["past"][1])])
    for request, size in zip(requests, _SIZES, strict=True):
        assert request.request_id == rows.roles["request"][first]
        assert request.user == rows.roles["user"][first]
        assert request.time_micros == rows.roles["time"][first]
        shown, features = request.shown, request.features
        assert shown is not None
        assert features is not None
        own = slice(first, first + size)
        assert _CODES[shown.ads].tolist() == rows.roles["item"][own].tolist()
        assert shown.labels["click"].tolist() == rows.labels["click"][own].tolist()
        assert np.isnan(shown.labels["buy"]).all()
        assert features.ids.tolist() == [[rows.ids["user"][first], rows.ids["item"][first]]]
        assert features.numeric.tolist() == [[first]]
        assert shown.features is not None
        assert shown.features.numeric[:, 0].tolist() == list(range(first, first + size))
        history = rows.sequences["past"][0][bounds[first] : bounds[first + 1]]
        assert features.sequences["past"].values.tolist() == history.tolist()
        assert features.sequences["past"].offsets.tolist() == [0, len(history)]
        first += size


def test_ads_are_those_of_the_log_as_last_seen(tmp_path: Path, spec: InputSpec) -> None:
    fields = (
        Field(name="user", kind="categorical", side="user"),
        Field(name="item", kind="categorical", side="item"),
        Field(name="price", kind="numeric", side="item"),
        Field(name="past", kind="sequence", shares="item", side="item"),
    )
    schema = Schema(fields=fields, tasks=spec.tasks)
    rows = _rows()
    split = _dataset(rows, tmp_path / "data", schema, spec).split("test")

    ads = logged_ads([split], schema, spec)

    item = rows.roles["item"].tolist()
    assert ads.codes.tolist() == sorted(set(item))
    bounds = np.concatenate([[0], np.cumsum(rows.sequences["past"][1])])
    events = []
    for at, code in enumerate(ads.codes.tolist()):
        last = max(row for row, other in enumerate(item) if other == code)
        assert ads.rows.numeric["price"][at] == last
        assert ads.rows.ids["item"][at] == rows.ids["item"][last]
        events += rows.sequences["past"][0][bounds[last] : bounds[last + 1], 0].tolist()
        assert ads.rows.sequences["past"][1][at] == bounds[last + 1] - bounds[last]
    assert ads.rows.sequences["past"][0][:, 0].tolist() == events
    assert set(ads.rows.ids) == {"item"}


@pytest.mark.parametrize("of", ["first", "last"])
def test_ads_of_several_splits_are_as_the_first_or_last_of_them_has_them(
    tmp_path: Path, spec: InputSpec, of: Literal["first", "last"]
) -> None:
    fields = (
        Field(name="user", kind="categorical", side="user"),
        Field(name="item", kind="categorical", side="item"),
        Field(name="price", kind="numeric", side="item"),
        Field(name="past", kind="sequence", shares="item", side="item"),
    )
    schema, rows = Schema(fields=fields, tasks=spec.tasks), _rows()
    # The later split never shows ad 70, and the earlier one never ad 90.
    item = rows.roles["item"]
    is_early = np.arange(len(item)) < 14
    early, late = rows.select(is_early & (item != 90)), rows.select(~is_early & (item != 70))
    with DatasetWriter(tmp_path / "data", schema, spec) as writer:
        (writer.encoders_path / "encoders.json").write_text("{}")
        writer.append("train", early)
        writer.append("valid", late)
        data = writer.finish({})

    ads = logged_ads([data.split("train"), data.split("valid")], schema, spec, of=of)

    assert sorted(ads.codes.tolist()) == [10, 30, 50, 70, 90]
    lengths, events = ads.rows.sequences["past"][1], []
    for at, code in enumerate(ads.codes.tolist()):
        # Prices are row numbers.
        newest, oldest = (early if code == 70 else late), (late if code == 90 else early)
        part, place = (oldest, 0) if of == "first" else (newest, -1)
        row = int(np.flatnonzero(part.roles["item"] == code)[place])
        assert ads.rows.numeric["price"][at] == part.numeric["price"][row]
        assert ads.rows.ids["item"][at] == part.ids["item"][row]
        bounds = np.concatenate([[0], np.cumsum(part.sequences["past"][1])])
        assert lengths[at] == bounds[row + 1] - bounds[row]
        events += part.sequences["past"][0][bounds[row] : bounds[row + 1], 0].tolist()
    assert ads.rows.sequences["past"][0][:, 0].tolist() == events


@pytest.mark.parametrize("rows_at_a_time", [2, 4096])
def test_ads_that_came_later_are_left_out_of_what_was_shown_and_are_slots(
    tmp_path: Path,
    schema: Schema,
    spec: InputSpec,
    monkeypatch: pytest.MonkeyPatch,
    rows_at_a_time: int,
) -> None:
    split = _dataset(_rows(), tmp_path / "data", schema, spec).split("test")
    monkeypatch.setattr(log, "_ROWS_AT_A_TIME", rows_at_a_time)
    whole = list(logged_requests(split, spec, _CODES))

    # Without ads 70 and 90, at places 0 and 2 of the whole table.
    found = list(logged_requests(split, spec, np.array([10, 30, 50]), may_be_unknown=True))

    assert [request.slots for request in found] == list(_SIZES)
    left = 0
    for request, before in zip(found, whole, strict=True):
        assert request.shown is not None
        assert before.shown is not None
        known = np.isin(before.shown.ads, [1, 3, 4])
        left += int((~known).sum())
        codes = np.array([10, 30, 50])[request.shown.ads]
        assert codes.tolist() == _CODES[before.shown.ads[known]].tolist()
        assert (
            request.shown.labels["click"].tolist() == before.shown.labels["click"][known].tolist()
        )
        ours, theirs = request.shown.features, before.shown.features
        assert ours is not None
        assert theirs is not None
        assert ours.numeric.tolist() == theirs.numeric[torch.from_numpy(known)].tolist()
        lengths = theirs.sequences["past"].offsets.diff()[torch.from_numpy(known)]
        assert ours.sequences["past"].offsets.diff().tolist() == lengths.tolist()
        # The request itself is that of its first row, whatever that shows.
        assert request.features is not None
        assert before.features is not None
        assert request.features.numeric.tolist() == before.features.numeric.tolist()
    assert left > 0


def test_requests_are_counted_as_they_are_read(
    tmp_path: Path, schema: Schema, spec: InputSpec
) -> None:
    split = _dataset(_rows(), tmp_path / "data", schema, spec).split("test")
    without = _dataset(_with_roles(request=None), tmp_path / "other", schema, spec).split("test")

    assert count_requests(split) == len(_SIZES)
    with pytest.raises(DataError, match=r"must have the role 'request', got none"):
        count_requests(without)


def test_log_without_items_has_no_ads(tmp_path: Path, schema: Schema, spec: InputSpec) -> None:
    split = _dataset(_with_roles(item=None), tmp_path / "data", schema, spec).split("test")

    with pytest.raises(DataError, match=r"split 'test': must have the role 'item', got none"):
        logged_ads([split], schema, spec)


def test_market_is_replayed_from_its_log(tmp_path: Path) -> None:
    # Slates of 4, split by time; an untrained model.
    simulate(12_000, tmp_path / "market", seed=1)
    data = ingest(tmp_path / "market" / "logs", tmp_path / "data", schema=market_schema())
    ads = logged_ads([data.split("test")], data.schema, data.spec)
    count = len(ads.codes)
    table = AdTable(
        bid=np.ones(count),
        billing=np.zeros(count, np.int8),
        advertiser=ads.rows.ids["advertiser_id"].astype(np.int64),
        quality=np.zeros(count),
    )
    value = _ClickValue()
    features = AdFeatures.of_rows(ads.rows, data.schema, data.spec)
    torch.manual_seed(0)
    model = DeepFM(DeepFMConfig(hidden_units=(8,)), data.spec)
    stage = RankerStage(model, data.spec.tasks, features, table, value)
    funnel = Funnel([Step(name="final", stage=stage, keep=20)], table, value)

    report = replay(
        funnel,
        logged_requests(data.split("test"), data.spec, ads.codes),
        reference=Reference(stage=stage, scope="all", every=10),
        heads={"final": stage},
    )

    # The log's own rows, in the log's order, through the same model.
    loader = Loader(data.split("test"), data.spec, batch_size=4096, shuffle=False)
    expected = LogLossAccumulator()
    with torch.no_grad():
        for batch in loader.epoch(0):
            found = model(_with_item_fields_of(batch, features, data)).logits[:, 0].double()
            expected.update(batch.labels[:, 0].numpy(), found.sigmoid().numpy())
    assert report.heads["final"]["click"].rows == data.split("test").num_rows
    assert report.heads["final"]["click"].log_loss == pytest.approx(expected.log_loss())
    assert report.requests == pytest.approx(data.split("test").num_rows / 4, abs=1)
    assert report.stages[0].candidates_in == count
    assert report.stages[0].measures["recall"] == 1
    assert report.stages[0].fallbacks == {}


def _with_item_fields_of(batch: Batch, features: AdFeatures, data: Dataset) -> Batch:
    """The item fields that the log changes over time, as the table of ads has them."""
    item = data.split("test").role("item")
    assert item is not None
    ads = torch.from_numpy(np.searchsorted(np.unique(item), item))
    return features.pairs(batch, torch.arange(batch.num_rows), ads)


class _ClickValue:
    def score(
        self,
        predictions: Mapping[str, NDArray[np.float64]],
        bid: NDArray[np.float64],
        billing: NDArray[Any],
    ) -> NDArray[np.float64]:
        return bid * predictions["click"]


def _with_roles(**changes: Any) -> EncodedRows:
    rows = _rows()
    roles = {name: codes for name, codes in {**rows.roles, **changes}.items() if codes is not None}
    return replace(rows, roles=roles)


@pytest.mark.parametrize("role", ["request", "item"])
def test_log_without_a_role_is_refused(
    tmp_path: Path, schema: Schema, spec: InputSpec, role: str
) -> None:
    split = _dataset(_with_roles(**{role: None}), tmp_path / "data", schema, spec).split("test")

    with pytest.raises(DataError, match=rf"split 'test': must have the role '{role}', got none"):
        next(logged_requests(split, spec, _CODES))


def test_log_without_users_and_times_is_read(
    tmp_path: Path, schema: Schema, spec: InputSpec
) -> None:
    rows = _with_roles(user=None, time=None)
    split = _dataset(rows, tmp_path / "data", schema, spec).split("test")

    requests = list(logged_requests(split, spec, _CODES))

    assert [request.user for request in requests] == [~request.request_id for request in requests]
    assert {request.time_micros for request in requests} == {0}


def test_request_of_nobody_is_never_taken_for_that_of_a_user(
    tmp_path: Path, schema: Schema, spec: InputSpec
) -> None:
    # Request 17 of nobody, and then request 3 of the user 17, whose code is the same.
    codes = as_codes(pa.array([17, 3]))
    user = np.repeat([-1, codes[0]], 2)
    rows = _rows().select(np.arange(sum(_SIZES)) < 4)
    roles = {**rows.roles, "request": codes.repeat(2), "user": user}
    split = _dataset(replace(rows, roles=roles), tmp_path / "data", schema, spec).split("test")

    nobody, known = logged_requests(split, spec, _CODES)

    assert (nobody.request_id, known.user) == (codes[0], codes[0])
    assert nobody.user < 0 <= known.user


def test_without_times_nothing_that_is_remembered_of_a_user_serves_another_request(
    tmp_path: Path, schema: Schema, spec: InputSpec
) -> None:
    rows = _with_roles(user=np.full(sum(_SIZES), 5), time=None)
    split = _dataset(rows, tmp_path / "data", schema, spec).split("test")

    users = [request.user for request in logged_requests(split, spec, _CODES)]

    assert len(set(users)) == len(_SIZES)


def test_row_without_a_request_is_named(tmp_path: Path, schema: Schema, spec: InputSpec) -> None:
    request = _rows().roles["request"].copy()
    request[7] = -1
    split = _dataset(_with_roles(request=request), tmp_path / "data", schema, spec).split("test")

    for read in (count_requests, lambda split: next(logged_requests(split, spec, _CODES))):
        with pytest.raises(DataError, match=r"split 'test', row 7: must belong to a request"):
            read(split)


def test_requests_whose_rows_stand_apart_are_refused(
    tmp_path: Path, schema: Schema, spec: InputSpec
) -> None:
    # Two at a time, of two rows each: 0 1 0 1 2 3 2 3 ...
    at = np.arange(sum(_SIZES))
    request = 500 - (at // 4 * 2 + at % 2)
    split = _dataset(_with_roles(request=request), tmp_path / "data", schema, spec).split("test")

    for read in (count_requests, lambda split: next(logged_requests(split, spec, _CODES))):
        with pytest.raises(
            DataError, match=r"'test', row 2: the rows of a request must .* of others, 11 times"
        ):
            read(split)


def test_table_without_ads_is_said(tmp_path: Path, schema: Schema, spec: InputSpec) -> None:
    split = _dataset(_rows(), tmp_path / "data", schema, spec).split("test")

    with pytest.raises(DataError, match=r"row 0: its ad must be one of the 0 of the table"):
        next(logged_requests(split, spec, np.empty(0, np.int64)))


@pytest.mark.parametrize("code", [5, 40, 99])
def test_row_of_an_ad_that_is_not_in_the_table_is_named(
    tmp_path: Path, schema: Schema, spec: InputSpec, code: int
) -> None:
    item = _rows().roles["item"].copy()
    item[6] = code
    split = _dataset(_with_roles(item=item), tmp_path / "data", schema, spec).split("test")

    with pytest.raises(DataError, match=r"row 6: its ad must be one of the 5 of the table"):
        list(logged_requests(split, spec, _CODES))
