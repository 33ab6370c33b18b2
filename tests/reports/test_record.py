"""What is read back from a run folder, and what is said where a part of it is gone."""

import json
from pathlib import Path

import pytest

from tamis.errors import ArtifactError
from tamis.reports.record import describe_split, read_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("run.json", "metrics.json"):
        (folder / name).write_text("{}")
    (folder / "config.toml").write_text('[model]\nname = "lr"\n')
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    return folder


def test_run_is_read_back(run: Path) -> None:
    record = read_run(run)

    assert record.name == "run"
    assert record.config == '[model]\nname = "lr"\n'
    assert record.history == [{"step": 1}, {"step": 2}]
    assert record.diagnostics == {}


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl"])
def test_file_that_is_gone_is_named(run: Path, name: str) -> None:
    (run / name).unlink()

    with pytest.raises(ArtifactError, match=rf"run/{name}: must exist, got no such file.*anew"):
        read_run(run)


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl"])
def test_file_that_is_no_text_is_named(run: Path, name: str) -> None:
    (run / name).write_bytes(b"\xff\xfe")

    with pytest.raises(ArtifactError, match=rf"run/{name}: must be readable text, got 'utf-8'"):
        read_run(run)


def test_line_that_is_no_json_is_named(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"st')

    with pytest.raises(ArtifactError, match=r"metrics.jsonl: line 2 must be JSON, .* train anew"):
        read_run(run)


def test_unfinished_run_says_how_to_finish_it(run: Path) -> None:
    (run / "metrics.json").unlink()

    with pytest.raises(ArtifactError, match=r"got an unfinished one. Give .* with --run .*run to"):
        read_run(run)


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("time", "by time: the last 20 % of the rows test, the 7.5 % before them validation"),
        ("user", "at random by user: 7.5 % validation, 20 % test"),
        ("ratio", "at random by row: 7.5 % validation, 20 % test"),
        ("column", "by the column 'fold'"),
        ("auto", "as the logs were given"),
    ],
)
def test_split_is_said_in_words(by: str, expected: str) -> None:
    split = {"by": by, "column": "fold", "valid": 0.075, "test": 0.2, "seed": 0}

    assert describe_split(split) == expected
    assert describe_split(json.loads("{}")) == ""
