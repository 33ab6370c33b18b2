"""``tamis refresh``: what is refused before anything is read; the loop is tested elsewhere."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tamis.serving.store import Store


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none", "--store", "sqlite:///s.db"), "none: must be a finished bundle"),
        ((".", "--store", "sqlite:///s.db"), "must be a finished bundle"),
        (("none", "--store", "sqlite:///nope.db"), "nope.db: must be a store that a server has"),
        (("none", "--store", "mysql://x"), "got the kind 'mysql'"),
        (("none", "--store", "sqlite:///s.db", "--server", "x"), "server: must be an address"),
        (("none", "--store", "sqlite:///s.db", "--tolerance", "-1"), "tolerance and settle_min"),
        (("none", "--store", "sqlite:///s.db", "--least-requests", "1"), "least_requests=1"),
    ],
)
def test_what_cannot_be_refreshed_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Store("sqlite:///s.db").close()

    assert message in refused("refresh", *arguments)
    assert not (tmp_path / "none-refresh").exists()
    assert not (tmp_path / "nope.db").exists()
