"""Datasets on disk: what is written is read back, and damage is found."""

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tamis import artifacts
from tamis.data import dataset as dataset_module
from tamis.data.dataset import Dataset, DatasetWriter, EncodedRows, Split
from tamis.data.schema import InputSpec, Schema
from tamis.errors import ArtifactError, DataError, RunInUseError


def _rows(count: int, first: int = 0) -> EncodedRows:
    lengths = np.arange(count) % 3
    return EncodedRows(
        row=np.arange(first, first + count),
        numeric={"price": np.arange(count, dtype=np.float32)},
        ids={
            "user": np.arange(count, dtype=np.int32) % 40,
            "item": np.arange(count, dtype=np.int32) % 30,
        },
        sequences={"past": (np.arange(int(lengths.sum()), dtype=np.int32)[:, None], lengths)},
        labels={
            "click": (np.arange(count) % 2).astype(np.float32),
            "buy": np.full(count, np.nan, np.float32),
        },
        roles={"user": np.arange(count, dtype=np.int64)},
    )


def test_rows_are_read_back_across_record_batches(
    tmp_path: Path, schema: Schema, spec: InputSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_module, "ROWS_PER_RECORD_BATCH", 7)
    with DatasetWriter(tmp_path / "d", schema, spec) as writer:
        writer.append("train", _rows(10))
        writer.append("train", _rows(10, first=10))
        split = writer.finish({}).split("train")

    assert split.num_rows == 20
    assert split.rows().tolist() == list(range(20))
    assert split.ids("user").tolist() == list(range(10)) * 2
    assert split.numeric("price").tolist() == [float(v) for v in range(10)] * 2
    assert split.labels()[:, 0].tolist() == [0.0, 1.0] * 10
    assert np.isnan(split.labels()[:, 1]).all()
    values, lengths = split.columns.read_jagged("past", 5, 16)
    # Rows 5..9 of the first ten have lengths 2 0 1 2 0; rows 0..5 of the next 0 1 2 0 1 2.
    assert lengths.tolist() == [2, 0, 1, 2, 0, 0, 1, 2, 0, 1, 2]
    assert values.tolist() == [4, 5, 6, 7, 8, 0, 1, 2, 3, 4, 5]


def test_the_same_rows_give_the_same_fingerprint(
    make_dataset: Callable[..., Dataset],
) -> None:
    first, second, other = (
        make_dataset(name="a"),
        make_dataset(name="b"),
        make_dataset(601, name="c"),
    )

    assert first.fingerprint == second.fingerprint != other.fingerprint


def test_arrow_readers_see_one_column_per_field(make_dataset: Callable[..., Dataset]) -> None:
    path = make_dataset().path / "splits" / "train" / "data.arrow"

    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()

    assert table.column_names[:4] == ["user", "item", "price", "past"]
    assert table.schema.field("past").type == pa.list_(pa.int32())


def test_writer_refuses_a_folder_with_files(
    tmp_path: Path, schema: Schema, spec: InputSpec
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine.txt").write_text("keep")

    with pytest.raises(DataError, match="must not exist or be empty"):
        DatasetWriter(tmp_path / "d", schema, spec)
    assert (tmp_path / "d" / "mine.txt").read_text() == "keep"


def test_failed_write_leaves_nothing_behind(
    tmp_path: Path, schema: Schema, spec: InputSpec
) -> None:
    def write() -> None:
        with DatasetWriter(tmp_path / "d", schema, spec) as writer:
            writer.append("train", _rows(5))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write()

    assert list(tmp_path.iterdir()) == []


def test_two_writers_do_not_mix_one_dataset(
    tmp_path: Path, schema: Schema, spec: InputSpec
) -> None:
    with DatasetWriter(tmp_path / "d", schema, spec) as first:
        first.append("train", _rows(5))
        with pytest.raises(RunInUseError, match=r"must not be in use, got a living process"):
            DatasetWriter(tmp_path / "d", schema, spec).__enter__()
        first.append("train", _rows(5, first=5))
        dataset = first.finish({})

    assert dataset.split("train").num_rows == 10
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_what_a_killed_writer_left_is_removed(
    tmp_path: Path, schema: Schema, spec: InputSpec
) -> None:
    write = (
        "import os; from pathlib import Path; from tamis import artifacts\n"
        "with artifacts.draft_folder(Path('d')) as draft:\n"
        "    (draft / 'half').write_text('x'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", write], cwd=tmp_path, check=False).returncode == 9
    assert len(list(tmp_path.rglob("half"))) == 1

    with DatasetWriter(tmp_path / "d", schema, spec) as writer:
        writer.append("train", _rows(5))
        dataset = writer.finish({})

    assert "half" not in dataset.manifest["files"]
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_working_directory_is_not_replaced_by_a_dataset(
    tmp_path: Path, schema: Schema, spec: InputSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DataError, match=r"^\.: must be a new folder, got the working directory"):
        DatasetWriter(Path(), schema, spec)


def test_full_disk_is_said_and_leaves_nothing_behind(
    tmp_path: Path, schema: Schema, spec: InputSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pa.ipc, "new_file", full)

    def write() -> None:
        with DatasetWriter(tmp_path / "d", schema, spec) as writer:
            writer.append("train", _rows(5))
            writer.finish({})

    with pytest.raises(ArtifactError, match=r"must fit on the disk, got No space left"):
        write()

    assert list(tmp_path.iterdir()) == []


def test_dataset_is_on_the_disk_before_its_manifest_and_its_name_after(
    make_dataset: Callable[..., Dataset], synced: list[int]
) -> None:
    path = make_dataset().path

    sealed = synced.index((path / "manifest.json").stat().st_ino)
    parts = {part for part in path.rglob("*") if part.name != "manifest.json"}
    assert {part.stat().st_ino for part in parts} <= set(synced[:sealed])
    assert path.parent.stat().st_ino in synced[sealed:]
    # Waiting for it while it is written would cost; once, at the end, is enough.
    assert synced.count((path / "splits" / "train" / "data.arrow").stat().st_ino) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": None}, r"manifest.json: must have a table 'schema', got None. It was altered"),
        ({"spec": [1]}, r"manifest.json: must have a table 'spec', got \[1\]. It was altered"),
        ({"rows": 3}, r"manifest.json: must have a table 'rows', got 3. It was altered"),
        (
            {"spec": {"newkey": 1}},
            r"data: must have a schema and inputs that this tamis knows, got those of another "
            r"version: spec.newkey: must be a known key, .* Read it with the tamis that wrote it",
        ),
        (
            {"schema": {"newkey": 1}},
            r"data: must have a schema and inputs .*: newkey: must be a known key, .* Read it",
        ),
    ],
)
def test_manifest_of_another_form_is_an_artifact_error(
    make_dataset: Callable[..., Dataset], change: dict[str, object], message: str
) -> None:
    dataset = make_dataset()
    artifacts.write_json(dataset.path / "manifest.json", dataset.manifest | change)

    with pytest.raises(ArtifactError, match=message):
        Dataset.open(dataset.path)


def test_truncated_file_is_found_when_opened(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset()
    path = dataset.path / "splits" / "valid" / "data.arrow"
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(ArtifactError, match=r"valid.data.arrow: must hold \d+ bytes"):
        Dataset.open(dataset.path)


def test_altered_byte_is_found_when_verified(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset()
    path = dataset.path / "splits" / "train" / "data.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    Dataset.open(dataset.path)
    with pytest.raises(ArtifactError, match=r"train.data.arrow: must have sha256"):
        Dataset.open(dataset.path, verify=True)


def test_missing_split_names_the_ones_there_are(make_dataset: Callable[..., Dataset]) -> None:
    with pytest.raises(DataError, match="must have a split 'dev', got train, valid, test"):
        make_dataset().split("dev")


def test_encoded_rows_must_be_as_long_as_each_other() -> None:
    with pytest.raises(DataError, match="user: must hold 3 rows, got 2"):
        EncodedRows(row=np.arange(3), ids={"user": np.zeros(2, np.int32)})


def test_select_keeps_histories_with_their_rows() -> None:
    rows = _rows(6).select(np.array([False, True, True, False, False, True]))

    # Lengths of rows 1, 2, 5 are 1, 2, 2; their events are 0, then 1 2, then 4 5.
    values, lengths = rows.sequences["past"]
    assert lengths.tolist() == [1, 2, 2]
    assert values[:, 0].tolist() == [0, 1, 2, 4, 5]


def _rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Replace an Arrow file by an altered one."""
    with pa.memory_map(str(path)) as source:
        table = change(pa.ipc.open_file(source).read_all())
    path.unlink()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns("price"), r"must hold column 'price', got none. It was altered"),
        (
            lambda t: t.set_column(0, "user", t["user"].cast(pa.float32())),
            r"column 'user' must be of type int32 or int64, got float32. It was altered",
        ),
        (
            lambda t: t.append_column("odd", t["user"].cast(pa.string())),
            r"must hold numbers and lists of them, got string in column 'odd'. It was altered",
        ),
    ],
)
def test_split_with_other_columns_than_the_manifest_says_is_refused(
    make_dataset: Callable[..., Dataset],
    change: Callable[[pa.Table], pa.Table],
    message: str,
) -> None:
    dataset = make_dataset()
    _rewrite(dataset.path / "splits" / "train" / "data.arrow", change)

    with pytest.raises(ArtifactError, match=rf"data.arrow: {message}|data.arrow, {message}"):
        dataset.split("train")


def test_altered_footer_of_a_split_is_an_artifact_error_or_harmless(
    make_dataset: Callable[..., Dataset],
) -> None:
    dataset = make_dataset()
    path = dataset.path / "splits" / "train" / "data.arrow"
    whole = path.read_bytes()
    refused = 0
    # Every 7th of the last 700 bytes, where Arrow keeps the types and places of the columns.
    for position in range(len(whole) - 700, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            Split("train", path.parent, dataset.spec)
        except ArtifactError as error:
            assert "data.arrow" in str(error)  # noqa: PT017  (not every damage is one)
            refused += 1

    assert refused > 10
