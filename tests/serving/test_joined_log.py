"""The log of a store: row for row what a slow loop makes of it, and encoded as it was served."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tamis.data.ingest import encode_log
from tamis.data.loader import batches_of_rows
from tamis.data.market.schema import market_schema
from tamis.data.schema import Field, Roles, Schema, Task
from tamis.errors import DataError, SchemaError
from tamis.funnel.bundle import Bundle, read_bundle
from tamis.serving.answers import Answer, Query
from tamis.serving.engine import Engine
from tamis.serving.joined_log import JoinReport, refresh_warnings, write_joined_log
from tamis.serving.records import Event, ServedRequest
from tamis.serving.store import Store, Window

KINDS = ("impression", "click", "conversion", "hide")


def _serve_a_while(
    engine: Engine, make_query: Callable[..., Query], make_event: Callable[..., Event]
) -> tuple[list[Answer], list[Event]]:
    """Answers, and events of some of their ads in any order, some of them of nothing."""
    generator = np.random.default_rng(3)
    answers, told = [], []
    for number in range(60):
        user = str(generator.integers(4))
        query = make_query(str(number), user=user, columns={"device": "phone", "position": "1"})
        answer = engine.rank(query, engine.live).result(60)
        answers.append(answer)
        events = []
        for place, shown in enumerate(answer.served.shown, start=1):
            for kind in KINDS:
                if generator.random() < (0.8 if kind == "impression" else 0.3):
                    event = make_event(
                        f"{number} {place} {kind}", kind=kind, ad=shown.ad, user=user,
                        request_id=str(number), time_micros=query.time_micros + len(told) + place,
                        columns={"position": str(place)} if kind == "impression" else {},
                        ad_columns=shown.columns,
                    )  # fmt: skip
                    events.append(event)
        stranger = make_event(f"{number} x", ad="of no answer", user=user, request_id=str(number))
        events.append(stranger if number % 7 == 0 else replace(stranger, request_id=None))
        engine.write([events[k] for k in generator.permutation(len(events))]).result(60)
        told += events
    return answers, told


def test_rows_are_those_of_a_slow_loop(
    make_engine: Callable[..., Engine],
    make_query: Callable[..., Query],
    make_event: Callable[..., Event],
    tmp_path: Path,
) -> None:
    engine = make_engine()
    answers, told = _serve_a_while(engine, make_query, make_event)

    report = write_joined_log(engine._store, engine.live.served.schema, tmp_path / "log.parquet")

    expected: list[dict[str, Any]] = []
    for answer in answers:
        for shown in answer.served.shown:
            events = {e.kind: e for e in told
                      if (e.request_id, e.ad) == (answer.served.request_id, shown.ad)}  # fmt: skip
            if events:
                seen = events.get("impression")
                row = {**answer.served.columns, **shown.columns}
                row |= {kind: int(kind in events) for kind in KINDS[1:]}
                row["request_id"] = answer.served.request_id
                row["event_time"] = answer.served.time_micros if seen is None else seen.time_micros
                row["position"] = "1" if seen is None else seen.columns["position"]
                expected.append(row)
    log = pq.read_table(tmp_path / "log.parquet").to_pylist()
    assert len(log) == len(expected) > 100
    for found, row in zip(log, expected, strict=True):
        found["event_time"] = round(found["event_time"].timestamp() * 1e6)
        assert found == {name: row.get(name) for name in found}
        assert row.keys() <= found.keys()
    with_impression = sum(event.kind == "impression" for event in told)
    assert report == JoinReport(
        requests=60,
        rows=len(expected),
        not_seen=sum(len(answer.ads) for answer in answers) - len(expected),
        implied=len(expected) - with_impression,
        events=len(told),
        of_no_request=60 - 9,
        of_other_ads=9,
        late=0,
    )


@pytest.mark.parametrize("separator", ["", "|"])
def test_rows_are_encoded_as_they_were_served(
    make_engine: Callable[..., Engine],
    make_query: Callable[..., Query],
    make_event: Callable[..., Event],
    bundles: Path,
    tmp_path: Path,
    separator: str,
) -> None:
    engine = make_engine()
    engine.swap(
        _with_separator(read_bundle(bundles / "second"), separator),
        replaces=engine.live.served.release,
    )
    answers, _ = _serve_a_while(engine, make_query, make_event)
    served = engine.live.served
    write_joined_log(engine._store, served.schema, tmp_path / "log.parquet")

    (rows,) = encode_log(tmp_path / "log.parquet", served.bundle.blueprint.encoders)

    requests = pq.read_table(tmp_path / "log.parquet", columns=["request_id", "ad_id"]).to_pylist()
    by_request = {answer.served.request_id: answer for answer in answers}
    spec = served.bundle.blueprint.encoders.spec
    inventory = engine.live.ads.inventory
    for row, batch in zip(requests, batches_of_rows(rows, spec, batch_size=1), strict=True):
        (features,) = served.encode([by_request[row["request_id"]].served.columns])
        ad = engine.live.ads.row_by_id[row["ad_id"]]
        for at, item in enumerate(spec.categorical):
            if item.side == "item":
                assert batch.ids[0, at] == inventory.rows.ids[item.name][ad]
            elif item.name != "position":
                assert batch.ids[0, at] == features.ids[0, at]
        for at, name in enumerate(spec.numeric):
            ours = (
                inventory.rows.numeric[name][ad]
                if spec.numeric_sides[at] == "item"
                else features.numeric[0, at]
            )
            assert batch.numeric[0, at] == ours
        for name, history in features.sequences.items():
            assert batch.sequences[name].values.tolist() == history.values.tolist()
    assert any(len(answer.served.columns["history_ads"]) > 1 for answer in answers)


def test_id_with_the_separator_in_it_is_one_event(
    make_engine: Callable[..., Engine],
    make_query: Callable[..., Query],
    make_event: Callable[..., Event],
    bundles: Path,
    tmp_path: Path,
) -> None:
    engine = make_engine()
    bundle = _with_separator(read_bundle(bundles / "second"), "|")
    engine.swap(bundle, replaces=engine.live.served.release)
    engine.write([make_event("e", ad="a|b", user="3", request_id=None)]).result(60)

    answer = engine.rank(make_query("r"), engine.live).result(60)

    assert answer.served.columns["history_ads"] == ["a|b"]
    engine.write([make_event("f", kind="impression", ad=answer.ads[0].ad)]).result(60)
    write_joined_log(engine.store, engine.live.served.schema, tmp_path / "log.parquet")
    log = pq.read_table(tmp_path / "log.parquet").to_pylist()
    assert [row["history_ads"] for row in log] == [["a|b"]]


def test_column_that_changes_its_kind_is_read_as_the_one_that_is_now(
    store: Store,
    make_event: Callable[..., Event],
    make_served: Callable[..., ServedRequest],
    tmp_path: Path,
) -> None:
    def schema_of(kind: Any) -> Schema:
        hour, item = Field(name="hour", kind=kind), Field(name="ad", kind="categorical")
        roles = Roles(item="ad", request="request_id")
        return Schema(fields=(hour, item), tasks=(Task(name="click"),), roles=roles)

    for name, hour in (("r", 3.0), ("s", "4")):
        events = [
            make_event(f"{name}{kind}", kind=kind, ad=ad, request_id=name)
            for kind, ad in (("click", "7"), ("impression", "8"))
        ]
        store.append([make_served(name, columns={"hour": hour})], events)
    found = {}
    for kind in ("numeric", "categorical"):
        write_joined_log(store, schema_of(kind), tmp_path / kind)
        found[kind] = pq.read_table(tmp_path / kind)["hour"].to_pylist()
    assert found == {"numeric": [3.0, 3.0, 4.0, 4.0], "categorical": ["3", "3", "4", "4"]}

    store.append([make_served("t", columns={"hour": "noon"})], [make_event("t", request_id="t")])
    with pytest.raises(DataError, match=r"column 'hour' of request 't' of ad '7': .* got 'noon'"):
        write_joined_log(store, schema_of("numeric"), tmp_path / "numeric")


def _with_separator(bundle: Bundle, separator: str) -> Bundle:
    """The bundle of a log whose histories were texts."""
    encoders = bundle.blueprint.encoders
    fields = tuple(
        replace(item, separator=separator) if item.kind == "sequence" else item
        for item in encoders.schema.fields
    )
    encoders = replace(encoders, schema=replace(encoders.schema, fields=fields))
    return replace(bundle, blueprint=replace(bundle.blueprint, encoders=encoders))


def test_more_rows_than_one_part_holds(
    store: Store,
    make_event: Callable[..., Event],
    make_served: Callable[..., ServedRequest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tamis.serving.joined_log._ROWS_PER_GROUP", 7)
    store.append(
        [make_served(f"r{k}") for k in range(50)],
        [
            make_event(f"e{k}", kind=("impression", "click")[k % 2], request_id=f"r{k}")
            for k in range(50)
        ],
    )

    report = write_joined_log(store, market_schema(), tmp_path / "log.parquet")

    assert (report.rows, report.implied) == (50, 25)
    file = pq.ParquetFile(tmp_path / "log.parquet")
    assert file.num_row_groups == 8
    assert file.read()["request_id"].to_pylist() == [f"r{k}" for k in range(50)]


def test_store_without_a_seen_ad_is_refused(
    store: Store,
    make_event: Callable[..., Event],
    make_served: Callable[..., ServedRequest],
    tmp_path: Path,
) -> None:
    store.append([make_served("r")], [make_event("e", request_id="another")])

    with pytest.raises(
        DataError,
        match=r"must hold an answered request .* got none among 1 events\. Send events with the",
    ):
        write_joined_log(store, market_schema(), tmp_path / "log.parquet")
    assert list(tmp_path.glob("*.parquet*")) == []


def test_events_after_the_time_of_attribution_are_counted_and_in_no_row(
    store: Store,
    make_event: Callable[..., Event],
    make_served: Callable[..., ServedRequest],
    tmp_path: Path,
) -> None:
    served = make_served("r")
    first, second = (shown.ad for shown in served.shown[:2])
    asked = served.time_micros
    store.append(
        [served],
        [
            make_event("a", kind="impression", ad=first, request_id="r", time_micros=asked + 1),
            make_event("b", kind="click", ad=first, request_id="r", time_micros=asked + 99),
            make_event("c", kind="conversion", ad=first, request_id="r", time_micros=asked + 100),
            make_event("d", kind="click", ad=second, request_id="r", time_micros=asked + 100),
        ],
    )

    def rows(**options: int) -> tuple[JoinReport, list[tuple[str, int, int]]]:
        log = tmp_path / "log.parquet"
        report = write_joined_log(store, market_schema(), log, **options)
        table = pq.read_table(log).to_pylist()
        return report, [(row["ad_id"], row["click"], row["conversion"]) for row in table]

    report, found = rows(attribution_micros=100)
    assert found == [(first, 1, 0)]
    assert (report.rows, report.events, report.of_no_request, report.late) == (1, 4, 0, 2)
    report, found = rows()
    assert found == [(first, 1, 1), (second, 1, 0)]
    assert report.late == 0
    message = r"none among 4 events, 4 of which came too late\. Let events count for longer after"
    with pytest.raises(DataError, match=message):
        rows(attribution_micros=0)


def test_store_of_clicks_without_impressions_is_refused(
    store: Store,
    make_event: Callable[..., Event],
    make_served: Callable[..., ServedRequest],
    tmp_path: Path,
) -> None:
    schema, log = replace(market_schema(), tasks=(Task(name="click"),)), tmp_path / "log.parquet"
    served = make_served("r")
    first = served.shown[0].ad
    store.append([served], [make_event("e", kind="click", ad=first, request_id="r")])

    with pytest.raises(
        DataError, match=r"must hold impression events, .* no row has click = 0, got none among 1 "
    ):
        write_joined_log(store, schema, log)
    assert list(tmp_path.glob("*.parquet*")) == []

    seen = make_event("f", kind="impression", ad=first, request_id="r")
    store.append([], [seen])
    assert write_joined_log(store, schema, log).implied == 0


def test_schema_that_no_store_can_fill_is_refused(store: Store, tmp_path: Path) -> None:
    schema = market_schema()
    message = r"task 'basket': must be named as a kind of event.* Rename the label's column in the"
    with pytest.raises(SchemaError, match=message):
        write_joined_log(
            store, replace(schema, tasks=(Task(name="basket"),)), tmp_path / "log.parquet"
        )
    weighted = replace(schema, roles=replace(schema.roles, weight="w"))
    with pytest.raises(SchemaError, match=r"roles.weight: must be empty"):
        write_joined_log(store, weighted, tmp_path / "log.parquet")


def test_labels_that_no_event_tells_are_warned_of_where_a_stage_learns(bundles: Path) -> None:
    blueprint = read_bundle(bundles / "first").blueprint
    final = blueprint.stages[-1]
    spec = replace(final.plan.model.spec, tasks=(Task(name="click"), Task(name="purchase")))
    final = replace(final, plan=replace(final.plan, model=replace(final.plan.model, spec=spec)))

    (warning,) = refresh_warnings(replace(blueprint, stages=(*blueprint.stages[:-1], final)))

    assert warning.startswith("task 'purchase': no event is of this kind (impression, click,")
    assert refresh_warnings(blueprint) == ()
    # A funnel of popular ads alone has nothing to learn.
    assert refresh_warnings(replace(blueprint, stages=blueprint.stages[:1])) == ()


def test_logs_of_windows_are_the_log_of_the_whole_in_parts(
    make_engine: Callable[..., Engine],
    make_query: Callable[..., Query],
    make_event: Callable[..., Event],
    tmp_path: Path,
) -> None:
    engine = make_engine()
    _serve_a_while(engine, make_query, make_event)
    store, schema = engine._store, engine.live.served.schema

    whole = write_joined_log(store, schema, tmp_path / "whole.parquet")
    windows = [Window(until=20), Window(after=20, until=21), Window(after=21)]
    parts = [
        write_joined_log(store, schema, tmp_path / f"{place}.parquet", window=window)
        for place, window in enumerate(windows)
    ]

    rows = [row for place in range(3) for row in pq.read_table(tmp_path / f"{place}.parquet")
            .to_pylist()]  # fmt: skip
    assert rows == pq.read_table(tmp_path / "whole.parquet").to_pylist()
    for name in ("requests", "rows", "not_seen", "implied", "of_other_ads"):
        assert sum(getattr(part, name) for part in parts) == getattr(whole, name)
    # Events that name no request are in no window.
    assert sum(part.events for part in parts) == whole.events - whole.of_no_request
    assert all(part.of_no_request == 0 for part in parts)
