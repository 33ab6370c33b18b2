"""The loader: every row once, the same order for the same seed, any position resumable."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tamis.data import loader as loader_module
from tamis.data.batch import Batch
from tamis.data.dataset import Dataset, DatasetWriter, EncodedRows, Split
from tamis.data.loader import Loader
from tamis.data.schema import CategoricalInput, Field, InputSpec, Schema, Table, Task
from tamis.errors import ArtifactError, DataError


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "ROWS_PER_BLOCK", 16)
    monkeypatch.setattr(loader_module, "BLOCKS_PER_POOL", 5)


@pytest.fixture
def split(make_dataset: Callable[..., Dataset]) -> Split:
    return make_dataset(train=333).split("train")


def _users(batches: Iterator[Batch]) -> list[int]:
    return [int(value) for batch in batches for value in batch.ids[:, 0]]


def _same(first: Batch, second: Batch) -> bool:
    pairs = [
        (first.ids, second.ids),
        (first.numeric, second.numeric),
        (first.labels.nan_to_num(-1), second.labels.nan_to_num(-1)),
        (first.weights, second.weights),
        (first.sequences["past"].values, second.sequences["past"].values),
        (first.sequences["past"].offsets, second.sequences["past"].offsets),
    ]
    return all(torch.equal(a, b) for a, b in pairs)


def test_unshuffled_rows_come_in_order(split: Split, spec: InputSpec) -> None:
    loader = Loader(split, spec, batch_size=50, shuffle=False)

    assert _users(loader.epoch(0)) == split.ids("user").tolist()
    assert [batch.num_rows for batch in loader.epoch(0)] == [50] * 6 + [33]
    assert loader.num_batches == 7


def test_a_shuffled_epoch_holds_every_row_once_and_whole(split: Split, spec: InputSpec) -> None:
    loader = Loader(split, spec, batch_size=64, seed=3)
    prices = split.numeric("price")
    position = {float(price): row for row, price in enumerate(prices)}
    values, lengths = split.columns.read_jagged("past", 0, split.num_rows)
    ends = np.cumsum(lengths)
    seen = []
    for batch in loader.epoch(0):
        offsets = batch.sequences["past"].offsets
        for index in range(batch.num_rows):
            row = position[float(batch.numeric[index, 0])]
            seen.append(row)
            # The history must be that of the same row, whatever the shuffle did.
            events = batch.sequences["past"].values[offsets[index] : offsets[index + 1], 0]
            assert events.tolist() == values[ends[row] - lengths[row] : ends[row]].tolist()
            assert int(batch.ids[index, 1]) == split.ids("item")[row]

    assert sorted(seen) == list(range(split.num_rows))
    assert seen != sorted(seen)


def test_order_depends_on_seed_and_epoch_only(split: Split, spec: InputSpec) -> None:
    first = _users(Loader(split, spec, batch_size=32, seed=1).epoch(4))

    assert _users(Loader(split, spec, batch_size=50, seed=1, prefetch=0).epoch(4)) == first
    assert _users(Loader(split, spec, batch_size=32, seed=1).epoch(5)) != first
    assert _users(Loader(split, spec, batch_size=32, seed=2).epoch(4)) != first


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(start=st.integers(0, 14), batch_size=st.integers(20, 120), shuffle=st.booleans())
def test_any_start_gives_the_rest_of_the_epoch(
    split: Split, spec: InputSpec, start: int, batch_size: int, shuffle: bool
) -> None:
    loader = Loader(split, spec, batch_size=batch_size, seed=7, shuffle=shuffle, prefetch=0)

    whole = list(loader.epoch(2))[start:]
    rest = list(loader.epoch(2, start))

    assert len(whole) == len(rest)
    assert all(_same(a, b) for a, b in zip(whole, rest, strict=True))


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(world_size=st.integers(1, 6), batch_size=st.integers(1, 70))
def test_ranks_share_the_rows_without_overlap(
    split: Split, spec: InputSpec, world_size: int, batch_size: int
) -> None:
    prices = []
    for rank in range(world_size):
        loader = Loader(
            split, spec, batch_size=batch_size, rank=rank, world_size=world_size, prefetch=0
        )
        for batch in loader.epoch(0):
            prices += batch.numeric[:, 0].tolist()

    assert sorted(prices) == sorted(split.numeric("price").tolist())


def test_drop_last_leaves_the_short_batch_out(split: Split, spec: InputSpec) -> None:
    loader = Loader(split, spec, batch_size=100, drop_last=True)

    assert [batch.num_rows for batch in loader.epoch(0)] == [100, 100, 100]
    assert loader.num_batches == 3


def test_abandoned_epoch_ends_its_thread(split: Split, spec: InputSpec) -> None:
    batches = Loader(split, spec, batch_size=8).epoch(0)
    next(batches)

    batches.close()

    assert not [t for t in threading.enumerate() if t.name == "tamis-loader"]


def test_error_in_the_background_reaches_the_caller(
    split: Split, spec: InputSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise OSError("disk gone")

    monkeypatch.setattr(loader_module, "_read_pool", broken)

    with pytest.raises(OSError, match="disk gone"):
        next(Loader(split, spec, batch_size=8).epoch(0))


def test_split_smaller_than_its_ranks_is_refused(
    make_dataset: Callable[..., Dataset], spec: InputSpec
) -> None:
    split = make_dataset(train=2).split("train")

    with pytest.raises(DataError, match="must hold a row for each of 4 ranks, got 2"):
        Loader(split, spec, batch_size=8, rank=3, world_size=4)


def test_ids_of_a_huge_table_stay_exact(tmp_path: Path) -> None:
    ids = np.array([2**24, 2**24 + 1, 2**40 + 1], np.int64)
    schema = Schema(fields=(Field(name="user", kind="categorical"),), tasks=(Task(name="y"),))
    spec = InputSpec(
        numeric=(),
        categorical=(CategoricalInput(name="user", table="user"),),
        sequences=(),
        tables=(Table(name="user", num_rows=2**41),),
        tasks=schema.tasks,
    )
    with DatasetWriter(tmp_path / "d", schema, spec) as writer:
        labels = {"y": np.zeros(3, np.float32)}
        writer.append("train", EncodedRows(row=np.arange(3), ids={"user": ids}, labels=labels))
        split = writer.finish({}).split("train")

    batch = next(iter(Loader(split, spec, batch_size=3, shuffle=False).epoch(0)))

    assert batch.ids[:, 0].tolist() == ids.tolist()
    assert batch.numeric.shape == (3, 0)


@pytest.mark.parametrize("value", [40, 2**31 - 1, -1])
def test_id_outside_of_its_table_is_found_in_the_first_epoch(
    make_dataset: Callable[..., Dataset], spec: InputSpec, value: int
) -> None:
    dataset = make_dataset(train=100)
    size = spec.num_rows_by_table["user"]
    path = dataset.path / "splits" / "train" / "data.arrow"
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    ids = table["user"].to_numpy().copy()
    ids[61] = max(value, size) if value > 0 else value
    path.unlink()
    table = table.set_column(table.column_names.index("user"), "user", pa.array(ids))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)

    loader = Loader(dataset.split("train"), spec, batch_size=10)

    with pytest.raises(
        ArtifactError, match=rf"data.arrow, column 'user': ids must be below {size}"
    ):
        list(loader.epoch(0))


def test_bucketed_batches_hold_histories_of_like_length(split: Split, spec: InputSpec) -> None:
    def waste(*, bucket_by_length: bool) -> float:
        """Share of padding."""
        loader = Loader(
            split, spec, batch_size=10, seed=3, bucket_by_length=bucket_by_length, prefetch=0
        )
        lengths = [batch.sequences["past"].offsets.diff() for batch in loader.epoch(0)]
        cells = [len(item) * max(1, int(item.max())) for item in lengths]
        return 1 - sum(int(item.sum()) for item in lengths) / sum(cells)

    assert waste(bucket_by_length=True) < 0.5 * waste(bucket_by_length=False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(batch_size=st.integers(1, 200), start=st.integers(0, 40), seed=st.integers(0, 5))
def test_bucketed_epoch_holds_every_row_once_and_can_start_anywhere(
    split: Split, spec: InputSpec, batch_size: int, start: int, seed: int
) -> None:
    loader = Loader(
        split, spec, batch_size=batch_size, seed=seed, bucket_by_length=True, prefetch=0
    )
    whole = list(loader.epoch(1))

    prices = sorted(float(value) for batch in whole for value in batch.numeric[:, 0])
    assert prices == sorted(split.numeric("price").tolist())
    assert {batch.num_rows for batch in whole[:-1]} <= {batch_size}
    rest = list(loader.epoch(1, start))
    assert len(rest) == max(0, len(whole) - start)
    assert all(_same(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_buckets_do_not_come_in_the_order_of_their_lengths(split: Split, spec: InputSpec) -> None:
    loader = Loader(split, spec, batch_size=4, bucket_by_length=True, prefetch=0)
    means = [
        batch.sequences["past"].offsets.diff().float().mean().item() for batch in loader.epoch(0)
    ][:20]

    assert means != sorted(means)


def test_buckets_need_a_shuffle(split: Split, spec: InputSpec) -> None:
    with pytest.raises(ValueError, match="bucket_by_length needs shuffle"):
        Loader(split, spec, batch_size=4, bucket_by_length=True, shuffle=False)
