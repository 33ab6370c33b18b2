"""The scripts that choose recipes still find what they import."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

_RECIPES = Path(__file__).parents[2] / "recipes"


def _run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        cwd=_RECIPES,
        capture_output=True,
        text=True,
        check=False,
    )


def test_scripts_of_recipes_can_be_imported() -> None:
    names = sorted(path.stem for path in _RECIPES.glob("*.py"))
    assert {"ablate", "attempts", "tune"} <= set(names)

    done = _run(f"import {', '.join(names)}")

    assert done.returncode == 0, done.stderr


def test_trials_that_another_process_adds_meanwhile_stay(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    done = _run(
        """
        import sys
        from pathlib import Path

        from tune import Ledger

        here, elsewhere = (Ledger(Path(sys.argv[1]), command="tune") for _ in range(2))
        for trial in range(2):
            here.add("lr", {"recipe": {"trial": trial}, "auc": 0.6})
            elsewhere.add("fm", {"recipe": {"trial": trial}, "auc": 0.7})
        """,
        str(path),
    )

    assert done.returncode == 0, done.stderr
    trials = json.loads(path.read_text())["trials"]
    assert {
        model: [trial["recipe"]["trial"] for trial in found] for model, found in trials.items()
    } == {"lr": [0, 1], "fm": [0, 1]}
