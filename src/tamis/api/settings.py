"""What a recipe may set: every key of its tables, with its default and its meaning."""

import ast
import dataclasses
import inspect
import itertools
import json
import sys
import textwrap
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

_BY_ROWS = "batch_size"
"""Follows from the training rows where a recipe leaves it out: no one default can stand there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One key of a recipe's table."""

    name: str
    """The key; what stands before a dot is a list of tables, of which it is a key of each."""
    default: str
    """As TOML has it. Empty: there is none that one value could say."""
    choices: tuple[str, ...]
    """All values that it, or an entry of its list, may have, as TOML has them. Empty: any."""
    meaning: str
    """What it decides."""


def models() -> dict[str, str]:
    """What each model of the catalog is, by name, in a sentence."""
    from tamis.models.catalog import CATALOG

    about = {
        name: (getattr(sys.modules.get(entry.model.__module__), "__doc__", None) or "").strip()
        for name, entry in CATALOG.items()
    }
    return {name: text.partition("\n")[0] for name, text in about.items()}


def settings_of(model: str) -> dict[str, tuple[Setting, ...]]:
    """What the recipe of a model may set, by its tables: model, optimizer, schedule and training.

    Raises:
        ConfigError: There is no model of that name; the message has the nearest one.
    """
    from tamis.models import catalog
    from tamis.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig

    tables = {
        "model": catalog.entry(model).config,
        "optimizer": OptimizerConfig,
        "schedule": ScheduleConfig,
        "training": TrainingConfig,
    }
    return {name: tuple(_settings(kind)) for name, kind in tables.items()}


def _settings(kind: type[Any], *, within: str = "") -> Iterator[Setting]:
    meanings, hints = _meanings(kind), typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        parts = typing.get_args(hints[field.name])
        tables = [p for p in parts if isinstance(p, type) and dataclasses.is_dataclass(p)]
        unsaid = (None, dataclasses.MISSING)
        has_default = not tables and field.default not in unsaid and field.name != _BY_ROWS
        yield Setting(
            name=within + field.name,
            default=_as_toml(field.default) if has_default else "",
            choices=tuple(map(_as_toml, _choices(hints[field.name]))),
            meaning=meanings.get(field.name, ""),
        )
        for table in tables:
            yield from _settings(table, within=f"{within}{field.name}.")


def _choices(hint: Any) -> tuple[Any, ...]:  # noqa: ANN401  (a type)
    """Values that a setting, or each entry of a list, may have; none where they are not named."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return parts
    return next(filter(None, map(_choices, parts)), ())


def _meanings(kind: type[Any]) -> dict[str, str]:
    """Docstrings of a dataclass' fields, which stand below them in the source, where there is one.

    A model of a script or a notebook may have neither.
    """
    found = {}
    for part in reversed(kind.__mro__):
        if dataclasses.is_dataclass(part):
            try:
                source = inspect.getsource(part)
            except (OSError, TypeError):  # no file, or no module
                continue
            (definition,) = ast.parse(textwrap.dedent(source)).body
            assert isinstance(definition, ast.ClassDef)
            for field, text in itertools.pairwise(definition.body):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    words = ast.literal_eval(text.value).split()
                    found[ast.unparse(field.target)] = " ".join(words)
    return found


def _as_toml(value: Any) -> str:  # noqa: ANN401  (a plain value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_as_toml, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key} = {_as_toml(item)}' for key, item in value.items())}}}"
    return json.dumps(value)
