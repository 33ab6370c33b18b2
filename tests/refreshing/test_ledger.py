"""Rounds are read as they were written; a ledger that was altered is refused."""

import json
from pathlib import Path

import pytest

from tamis.errors import ArtifactError
from tamis.refreshing.ledger import Ledger, Losses, Round

ROUND = Round(number=1, base="a" * 64, after=0, trained_until=8, valid_until=9, until=10)
LOSS = Losses(stage="final", task="click", rows=3, serving=0.25, refreshed=0.125)


def test_rounds_are_read_as_they_were_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.last is None

    ledger.add(ROUND)
    ledger.update(status="published", release="b" * 64, bundle="/x", losses=(LOSS,))
    ledger.add(Round(number=2, base="b" * 64, after=8, trained_until=18, valid_until=19, until=20))

    again = Ledger(tmp_path)
    assert again.rounds == ledger.rounds
    assert again.rounds[0].losses == (LOSS,)
    assert again.last is not None
    assert again.last.number == 2
    assert again.round_of("b" * 64) == again.rounds[0]
    assert again.round_of("c" * 64) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be JSON"),
        ('{"version": 7, "rounds": []}', "must be a ledger of version 1, got 7"),
        ("[]", "must be a ledger of version 1, got None"),
        ('{"version": 1}', "must hold rounds, got"),
        ('{"version": 1, "rounds": [{"number": 1}]}', r"must hold rounds, got rounds\.0"),
    ],
)
def test_altered_ledger_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "ledger.json").write_text(text)

    with pytest.raises(ArtifactError, match=message):
        Ledger(tmp_path)


def test_unknown_status_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path).add(ROUND)
    path = tmp_path / "ledger.json"
    record = json.loads(path.read_text())
    record["rounds"][0]["status"] = "done"
    path.write_text(json.dumps(record))

    with pytest.raises(ArtifactError, match="status"):
        Ledger(tmp_path)
