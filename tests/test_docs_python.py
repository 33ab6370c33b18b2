"""docs/python.md runs from top to bottom, on a smaller market."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


@pytest.mark.slow
def test_every_snippet_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    assert len(snippets) == 6
    text = "\n".join(snippets)
    assert "100_000" in text

    # The page is ours, and a test that runs it is the point.
    exec(compile(text.replace("100_000", "10_000"), str(PAGE), "exec"), {})  # noqa: S102

    printed = capsys.readouterr().out
    assert printed.startswith("('train', 'valid', 'test') 8000\n")
    assert "finished" in printed
    assert "10000" in printed
    assert [line.split()[0] for line in printed.splitlines()[-3:]] == [
        *("popular", "final", "auction"),
    ]
    assert (tmp_path / "replays" / "funnel-1" / "report.html").exists()


def test_names_of_tamis_are_there_before_any_is_used() -> None:
    code = (
        "import sys, tamis; names = dir(tamis); tamis.errors.TamisWarning; tamis.api.infer_schema; "
        "assert {'train', 'ingest', 'compare', 'api', 'errors'} <= set(names) - {'Any'}, names; "
        "assert 'Any' not in names and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
