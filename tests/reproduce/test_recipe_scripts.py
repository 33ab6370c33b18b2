"""The scripts that choose recipes still find what they import."""

import subprocess
import sys
from pathlib import Path

_RECIPES = Path(__file__).parents[2] / "recipes"


def test_scripts_of_recipes_can_be_imported() -> None:
    names = sorted(path.stem for path in _RECIPES.glob("*.py"))
    assert {"ablate", "attempts", "tune"} <= set(names)

    done = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(names)}"],
        cwd=_RECIPES,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
