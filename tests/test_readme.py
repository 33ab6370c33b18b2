"""Every command and snippet of the README runs, in the order in which it stands."""

import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from typer.testing import CliRunner

from tamis.cli.main import app

README = Path(__file__).parents[1] / "README.md"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.S)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    count = 3000
    user = generator.integers(0, 50, count)
    table = pa.table(
        {
            "time": 1_700_000_000 + np.arange(count),
            "user_id": user,
            "ad_id": generator.integers(0, 40, count),
            "click": (generator.random(count) < 0.1 + 0.5 * (user % 2)).astype(np.int64),
        }
    )
    pyarrow.csv.write_csv(table, tmp_path / "clicks.csv")
    return tmp_path


@pytest.mark.slow
def test_every_command_and_snippet_runs(workplace: Path) -> None:
    lines = [line for block in _blocks("console") for line in block.splitlines()]
    commands = [shlex.split(line.removeprefix("$ tamis ")) for line in lines]
    assert len(commands) >= 8

    for arguments in commands:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{arguments}: {result.output}"

    (snippet,) = _blocks("python")
    namespace: dict[str, object] = {}
    code = compile(snippet, str(README), "exec")
    # The README is ours, and a test that runs it is the point.
    exec(code, namespace)  # noqa: S102
    assert len(snippet.strip().splitlines()) <= 7
    assert namespace["probabilities"].num_rows == 3000  # type: ignore[attr-defined]
    assert (workplace / "runs" / "dhen" / "report.html").exists()


_PAGES = [README, *(README.parent / name for name in ("CHANGELOG.md", "CONTRIBUTING.md"))]
_PAGES += sorted((*README.parent.glob("docs/**/*.md"), *README.parent.glob("results/*.md")))


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        path, _, heading = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page}: {target}"
        if heading:
            prose = re.sub(r"^```.*?^```", "", linked.read_text(), flags=re.S | re.M)
            heads = re.findall(r"^#+ (.*)$", prose, flags=re.M)
            anchors = {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}
            assert heading in anchors, f"{page}: {target}"


def test_make_targets_named_in_the_readme_exist() -> None:
    makefile = (README.parent / "Makefile").read_text()
    targets = set(re.findall(r"^    make ([\w-]+)$", README.read_text(), flags=re.M))

    assert {"quickstart", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M)
