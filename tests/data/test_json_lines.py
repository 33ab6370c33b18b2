"""JSON lines: types of columns, and numbers that 64 bits do not hold."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tamis.data import json_lines
from tamis.data.columns import as_categories
from tamis.data.json_lines import json_batches, json_types

NONE: frozenset[str] = frozenset()


def _write(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return tmp_path / "log.jsonl"


@pytest.mark.parametrize("as_list", [False, True], ids=["one", "list"])
def test_whole_numbers_beyond_64_bits_keep_their_digits(tmp_path: Path, as_list: bool) -> None:
    ids = [2**63 + 10**6, 2**63 + 10**6 + 1, 7, -(2**200)]
    rows = [{"id": [one] if as_list else one} for one in ids]
    path = _write(tmp_path, [*rows, {"id": None}])

    (batch,) = json_batches(path, None, NONE)

    read = batch["id"].flatten() if as_list else batch["id"]
    assert as_categories(read).values.to_pylist() == [str(one) for one in ids]


@pytest.mark.parametrize("masses", [[1.5e24, 2e24], [2**70, 0.5], [2**52, 0.5]])
def test_numbers_with_a_fraction_or_exponent_stay_floats(
    tmp_path: Path, masses: list[float]
) -> None:
    path = _write(tmp_path, [{"id": 2**63, "mass": mass} for mass in masses])

    assert json_types(path)["mass"] == pa.float64()


def test_numeric_column_may_begin_with_long_whole_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "_BLOCK_BYTES", 100)
    path = _write(tmp_path, [*[{"wei": 2**64}] * 9, {"wei": 1.5}])

    batches = json_batches(path, ["wei"], frozenset({"wei"}))

    assert [one for batch in batches for one in batch["wei"].to_pylist()] == [*[2.0**64] * 9, 1.5]
