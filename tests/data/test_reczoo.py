"""Readers of sets in reczoo's layout, on small files of that layout."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.data.ingest import ingest
from tamis.data.public_sets import reczoo
from tamis.data.public_sets.prepare import PublicSet, prepare
from tamis.errors import DataError


def _write(folder: Path, splits: tuple[str, ...], columns: dict[str, list[Any]]) -> None:
    folder.mkdir(parents=True)
    for split in splits:
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))


def _ingested(tmp_path: Path, prepared: PublicSet) -> Any:
    return ingest(
        prepared.files, tmp_path / "dataset", schema=prepared.schema, vectors=prepared.vectors
    )


def _criteo(label: str, rows: int = 30) -> dict[str, list[Any]]:
    numbers: dict[str, list[Any]] = {
        f"I{n}": [[None, -2, 0, 1, 2, 3, 1000][(row + n) % 7] for row in range(rows)]
        for n in range(1, 14)
    }
    categories: dict[str, list[Any]] = {
        f"C{n}": [f"{(row * n) % 3:08x}" for row in range(rows)] for n in range(1, 27)
    }
    return {label: [row % 2 for row in range(rows)], **numbers, **categories}


def test_criteo_x4_buckets_numbers_as_published(tmp_path: Path) -> None:
    # BARS writes the header Label,I1,...,I13,C1,...,C26.
    _write(tmp_path / "Criteo_x4", ("train", "valid", "test"), _criteo("Label"))
    prepared = prepare("criteo_x4", tmp_path, tmp_path / "out")
    found = pq.read_table(prepared.files["train"])["I13"].to_pylist()

    # floor(ln(3) ** 2) = 1 and floor(ln(1000) ** 2) = 47; up to 2 the number itself; none is 0.
    meaning = {None: 0, -2: -2, 0: 0, 1: 1, 2: 2, 3: 1, 1000: 47}
    assert found == [meaning[value] for value in _criteo("Label")["I13"]]
    dataset = _ingested(tmp_path, prepared)
    assert len(dataset.spec.categorical) == 39
    assert [task.name for task in dataset.spec.tasks] == ["Label"]
    assert dataset.split("test").num_rows == 30


def test_criteo_x1_is_used_as_it_is(tmp_path: Path) -> None:
    columns = {key: [0.5] * 30 if key[0] == "I" else v for key, v in _criteo("label").items()}
    _write(tmp_path / "Criteo_x1", ("train", "valid", "test"), columns)
    prepared = prepare("criteo_x1", tmp_path, tmp_path / "out")
    dataset = _ingested(tmp_path, prepared)

    assert prepared.files["train"] == tmp_path / "Criteo_x1" / "train.csv"
    assert (len(dataset.spec.numeric), len(dataset.spec.categorical)) == (13, 26)


def test_avazu_x4_takes_the_hour_apart(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "id": list(range(4)),
        "click": [0, 1, 0, 1],
        # Tuesday, 21 October 2014, midnight; Saturday the 25th, 23 h; and Sunday.
        "hour": [14102100, 14102523, 14102601, 14102100],
        **{name: [name] * 4 for name in reczoo._AVAZU},
    }
    _write(tmp_path / "Avazu_x4", ("train", "valid", "test"), columns)
    prepared = prepare("avazu_x4", tmp_path, tmp_path / "out")
    table = pq.read_table(prepared.files["valid"])

    assert table["hour"].to_pylist() == ["00", "23", "01", "00"]
    assert table["weekday"].to_pylist() == [1, 5, 6, 1]
    assert table["is_weekend"].to_pylist() == [0, 1, 1, 0]
    assert len(_ingested(tmp_path, prepared).spec.categorical) == 24


def test_avazu_x1_has_22_anonymous_features(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {f"feat_{n}": [1, 2, 1, 2] for n in range(1, 23)}
    _write(tmp_path / "Avazu_x1", ("train", "valid", "test"), {"label": [0, 1, 0, 1], **columns})

    prepared = prepare("avazu_x1", tmp_path, tmp_path / "out")
    assert len(_ingested(tmp_path, prepared).spec.categorical) == 22


def _amazon(rows: int = 200) -> dict[str, list[Any]]:
    return {
        "label": [row % 2 for row in range(rows)],
        "user_id": list(range(rows)),
        "item_id": [row % 9 for row in range(rows)],
        "cate_id": [row % 3 for row in range(rows)],
        "item_history": ["^".join(str(n % 9) for n in range(row % 5)) for row in range(rows)],
        "cate_history": ["^".join(str(n % 3) for n in range(row % 5)) for row in range(rows)],
    }


def test_amazon_holds_out_users_of_the_training_file(tmp_path: Path) -> None:
    _write(tmp_path / "AmazonElectronics_x1", ("train", "test"), _amazon())
    prepared = prepare("amazon_electronics_x1", tmp_path, tmp_path / "out")
    valid = pq.read_table(prepared.files["valid"])["user_id"].to_pylist()
    train = pq.read_table(prepared.files["train"])["user_id"].to_pylist()

    assert sorted(map(int, valid)) == [7, 27, 47, 67, 87, 107, 127, 147, 167, 187]
    assert sorted(map(int, train + valid)) == list(range(200))
    dataset = _ingested(tmp_path, prepared)
    assert dataset.split("test").num_rows == 200
    (group,) = dataset.spec.sequences
    assert group.tables == ("item_id", "cate_id")
    assert group.max_length == 100


def test_protocol_of_bars_validates_on_the_test_file(tmp_path: Path) -> None:
    _write(tmp_path / "AmazonElectronics_x1", ("train", "test"), _amazon())
    prepared = prepare("amazon_electronics_x1_bars", tmp_path, tmp_path / "out")

    assert prepared.files["valid"] == prepared.files["test"]
    assert _ingested(tmp_path, prepared).split("valid").num_rows == 200


def _taobao(rows: int = 60) -> dict[str, list[Any]]:
    return {
        "clk": [row % 2 for row in range(rows)],
        **{f"{name}_his": ["1^2^3"] * rows for name in ("btag", "cate", "brand")},
        "userid": [row % 6 for row in range(rows)],
        **{name: [row % 4 for row in range(rows)] for name in reczoo._TAOBAO_USER[1:]},
        **{name: [row % 4 for row in range(rows)] for name in reczoo._TAOBAO_ITEM},
        "price": [float(row) for row in range(rows)],
        "pid": ["430548_1007"] * rows,
        "btag": [1] * rows,
    }


def test_taobao_has_three_aligned_histories(tmp_path: Path) -> None:
    _write(tmp_path / "TaobaoAd_x1", ("train", "test"), _taobao())
    dataset = _ingested(tmp_path, prepare("taobao_ad_x1", tmp_path, tmp_path / "out"))

    assert [group.tables for group in dataset.spec.sequences] == [("cate_id", "brand", "btag")]
    assert len(dataset.spec.categorical) == 16


def test_taobao_holds_out_every_twentieth_row_of_known_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "TaobaoAd_x1", ("train", "test"), _taobao())
    blocks = reczoo._blocks

    def in_small_blocks(path: Path) -> Iterator[pa.Table]:
        for table in blocks(path):
            yield from (table.slice(start, 13) for start in range(0, table.num_rows, 13))

    monkeypatch.setattr(reczoo, "_blocks", in_small_blocks)
    prepared = prepare("taobao_ad_x1", tmp_path, tmp_path / "out")
    train, valid = (pq.read_table(prepared.files[split]) for split in ("train", "valid"))

    assert valid["price"].to_pylist() == ["7.0", "27.0", "47.0"]
    assert train.num_rows == 57
    assert set(valid["userid"].to_pylist()) <= set(train["userid"].to_pylist())


def _kuaishou(rows: int = 60) -> dict[str, list[Any]]:
    return {
        "timestamp": [1000 + row for row in range(rows)],
        "user_id": [row % 6 for row in range(rows)],
        "item_id": [row % 4 for row in range(rows)],
        "is_click": [row % 2 for row in range(rows)],
        "is_like": [0] * rows,
        "is_follow": [0] * rows,
        "pos_items": ["1^2^3"] * rows,
        "neg_items": ["3"] * rows,
    }


def test_kuaishou_has_two_histories_of_their_own(tmp_path: Path) -> None:
    _write(tmp_path / "KuaiVideo_x1", ("train", "test"), _kuaishou())
    with h5py.File(tmp_path / "KuaiVideo_x1" / "item_visual_emb_dim64.h5", "w") as file:
        # One for every item of the site, most of which are not in the log.
        file["key"], file["value"] = list(range(9)), np.arange(9 * 64.0).reshape(9, 64)
    dataset = _ingested(tmp_path, prepare("kuai_video_x1", tmp_path, tmp_path / "out"))

    assert [group.tables for group in dataset.spec.sequences] == [("item_id", "item_visual")] * 2
    # What happened after the click must not be an input.
    names = [item.name for item in dataset.spec.categorical]
    assert names == ["user_id", "item_id", "item_visual"]
    sizes = {table.name: (table.num_rows, table.vectors) for table in dataset.spec.tables}
    assert sizes["item_visual"] == (10, 64)
    test = dataset.split("test")
    found = dataset.given_rows()["item_visual"][test.ids("item_visual")][:, 0]
    assert found.tolist() == [64.0 * item for item in _kuaishou()["item_id"]]


def test_visual_vectors_of_kuaishou_that_are_not_there_are_missed(tmp_path: Path) -> None:
    _write(tmp_path / "KuaiVideo_x1", ("train", "test"), _kuaishou())

    with pytest.raises(DataError, match=r"item_visual_emb_dim64\.h5: must exist, .* Fetch the set"):
        prepare("kuai_video_x1", tmp_path, tmp_path / "out")


def test_kuaishou_holds_out_the_last_rows_of_known_users(tmp_path: Path) -> None:
    # Backwards: the time decides, not the place in the file.
    columns = {name: values[::-1] for name, values in _kuaishou().items()}
    _write(tmp_path / "KuaiVideo_x1", ("train", "test"), columns)
    (tmp_path / "KuaiVideo_x1" / "item_visual_emb_dim64.h5").touch()
    prepared = prepare("kuai_video_x1", tmp_path, tmp_path / "out")
    train, valid = (pq.read_table(prepared.files[split]) for split in ("train", "valid"))

    # Of 60 rows at 1000 to 1059 the 0.95 quantile is between 1056 and 1057.
    assert valid["timestamp"].to_pylist() == ["1059", "1058", "1057"]
    assert train.num_rows == 57
    assert set(valid["user_id"].to_pylist()) <= set(train["user_id"].to_pylist())


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (["5", "5"], r"timestamp must tell the last twentieth .* got 5 in at least 95 %"),
        (["5", ""], "timestamp: must be a number in every row, got none in one of them"),
        (["5", "noon"], "timestamp: must be a number in every row, got .*noon"),
        ([], r"train\.csv: must hold rows, got none"),
    ],
)
def test_training_files_without_times_are_refused(
    tmp_path: Path, times: list[str], message: str
) -> None:
    folder = tmp_path / "KuaiVideo_x1"
    _write(folder, ("test",), _kuaishou())
    (folder / "item_visual_emb_dim64.h5").touch()
    rows = "".join(f"{time},1\n" for time in times)
    (folder / "train.csv").write_text(f"timestamp,user_id\n{rows}")

    with pytest.raises(DataError, match=message):
        prepare("kuai_video_x1", tmp_path, tmp_path / "out")


@pytest.mark.parametrize("name", ["criteo_x1", "criteo_x4", "taobao_ad_x1"])
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"train\.csv: must exist, .* Fetch the set from reczoo"):
        prepare(name, tmp_path, tmp_path / "out")


def test_quoted_headers_and_words_stay_text(tmp_path: Path) -> None:
    folder = tmp_path / "AmazonElectronics_x1"
    _write(folder, ("test",), _amazon())
    rows = [f'{n % 2},{n},"00{n % 3}",NA,"1^2","1^2"' for n in range(200)]
    header = '"label","user_id","item_id","cate_id","item_history","cate_history"'
    (folder / "train.csv").write_text("\ufeff" + "\n".join([header, *rows]), encoding="utf-8")
    prepared = prepare("amazon_electronics_x1", tmp_path, tmp_path / "out")
    table = pq.read_table(prepared.files["train"])

    assert set(table["item_id"].to_pylist()) == {"000", "001", "002"}
    assert set(table["cate_id"].to_pylist()) == {"NA"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,user_id\n1,\n", "user_id: must be a whole number in every row, got None"),
        ("label,user_id\n1,u7\n", "user_id: must be a whole number in every row, got 'u7'"),
        ("label,user\n1,7\n", "user_id: must be a column of the training file, got label, user"),
        ("label,user_id\n1\n", r"train\.csv: must be a CSV file"),
        ("", r"train\.csv: must be a CSV file"),
    ],
)
def test_training_files_without_numbered_users_are_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    folder = tmp_path / "AmazonElectronics_x1"
    _write(folder, ("test",), _amazon())
    (folder / "train.csv").write_text(text)

    with pytest.raises(DataError, match=message):
        prepare("amazon_electronics_x1", tmp_path, tmp_path / "out")
