"""``tamis export``: what is refused; the files themselves are tested there."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_run_becomes_a_file(world: Path, tamis_json: Callable[..., dict[str, Any]]) -> None:
    pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

    found = tamis_json("export", "a", "--onnx", "a.onnx")

    assert found["out"] == "a.onnx"
    assert found["inputs"] == ["numeric", "ids"]
    assert found["tasks"] == ["y"]
    assert found["difference"] <= 1e-5
    assert Path("a.onnx").exists()
    assert Path("a.onnx.inputs/manifest.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "--onnx", "a.onnx"), "nowhere: must be a run folder"),
        (("a", "--onnx", "a.pt"), "a.pt: must end in .onnx, got '.pt'"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    world: Path, refused: Callable[..., str], arguments: tuple[str, ...], message: str
) -> None:
    pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

    assert message in refused("export", *arguments)


def test_missing_packages_are_named_with_the_line_that_installs_them() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None; sys.argv[1:] = sys.argv[2:]; "
        "from tamis.cli.main import run; run()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "-", "export", "run", "--onnx", "f.onnx"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert ended.returncode == 2
    assert "pip install '.[onnx]'" in ended.stderr
