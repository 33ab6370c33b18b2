"""A row whose training is stopped."""

from pathlib import Path

import pytest

from tamis.errors import TamisError
from tamis.reproduce.retrieval.row import RowOrder, make_row


def test_a_row_whose_training_a_signal_stopped_trains_nothing_else(
    tmp_path: Path, stopped: list[str]
) -> None:
    RowOrder(
        method="network",
        inputs=str(tmp_path),
        seed=0,
        recipe="network.toml",
        run=str(tmp_path / "network"),
        teacher_recipe="",
        teacher_run="",
        reference_recipe="two_tower.toml",
        reference_run=str(tmp_path / "two_tower"),
        exhaustive=1,
    ).write(tmp_path)

    with pytest.raises(TamisError, match="two_tower: training was stopped"):
        make_row(tmp_path)
    assert stopped == ["two_tower"]
