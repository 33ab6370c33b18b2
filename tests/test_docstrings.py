"""What implements somebody's method names it, and says where it differs."""

import ast
import inspect
from pathlib import Path

import tamis
from tamis.models import catalog

_SOURCE, _DIFFERS = "\nSource:\n", "\nDiffers from the source:\n"


def test_every_docstring_with_a_source_says_how_it_differs() -> None:
    found, short = 0, []
    for path in sorted(Path(tamis.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                found += _SOURCE in text
                if _SOURCE in text and _DIFFERS not in text:
                    short.append(f"{path.name}: {getattr(node, 'name', 'module')}")

    assert found > 100
    assert short == []


def test_every_model_has_a_source() -> None:
    texts = {name: inspect.getdoc(entry.model) or "" for name, entry in catalog.CATALOG.items()}

    assert [name for name, text in texts.items() if _SOURCE not in text] == []
