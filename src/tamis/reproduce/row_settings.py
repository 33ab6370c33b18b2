"""What tells the rows of a table apart, for a reader who does not look into their recipes."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tamis import config
from tamis.training.config import run_config_from_table


def differences(recipes: Mapping[str, Path], *, reference: str) -> dict[str, str]:
    """In what each recipe differs from that of a reference row, as a recipe would say it.

    Settings of another model are those that its recipe names. Recipes that are the same are left
    out.

    Args:
        recipes: Recipe of each row.
        reference: Row that the others are told beside.
    """
    base = dict(_leaves(_full(config.read_toml(recipes[reference]))))
    found = {}
    for row, path in recipes.items():
        table = config.read_toml(path)
        is_same_model = table["model"]["name"] == base["model.name"]
        own = _leaves(_full(table) if is_same_model else {"model": table["model"]})
        words = [f"`{key} = {_word(value)}`" for key, value in own if value != base.get(key)]
        if words:
            found[row] = ", ".join(words)
    return found


def settings_lines(settings: Mapping[str, str], *, head: str) -> list[str]:
    """A table of rows and what each is, as Markdown; nothing where there is nothing to tell.

    Args:
        settings: What is told of each row.
        head: What that is.
    """
    if not settings:
        return []
    lines = [f"| {row} | {words} |" for row, words in settings.items()]
    return [f"| row | {head} |", "|---|---|", *lines, ""]


def _full(table: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with every default."""
    return run_config_from_table(table).to_table()


def _leaves(table: Mapping[str, Any], *, where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        path = f"{where}.{key}" if where else key
        if isinstance(value, Mapping):
            yield from _leaves(value, where=path)
        else:
            yield path, value


def _word(value: object) -> str:
    """A value as TOML writes it; of members of an ensemble their names."""
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key} = {_word(item)}" for key, item in value.items())
        return str(value.get("name", f"{{ {inside} }}"))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_word(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
