"""``tamis settings``: which models there are, and what the recipe of one may set."""

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tamis.cli.console import Debug, Json, session

if TYPE_CHECKING:
    from tamis.api import Setting

_WIDTH = 96


def settings(
    model: Annotated[str, typer.Argument(help="A model; without one, all are named.")] = "",
    *,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the models; or, of one, a recipe of all settings with their defaults and meanings."""
    with session("settings", as_json=as_json, debug=debug) as current:
        from tamis import api

        if not model:
            found = api.models()
            widest = max(map(len, found))
            for name, text in found.items():
                current.say(f"{name:{widest}}  {text}")
            current.finish(models=found)
            return
        tables = api.settings_of(model)
        current.say("\n".join(_recipe(model, tables)))
        current.finish(
            model=model,
            settings={
                name: [dataclasses.asdict(item) for item in table] for name, table in tables.items()
            },
        )


def _recipe(model: str, tables: Mapping[str, Sequence["Setting"]]) -> Iterator[str]:
    """A TOML file's lines: every key at its default, below what it means."""
    yield "# For tamis train DATA --recipe FILE. All are defaults: what stays as it is may go."
    for name, table in tables.items():
        yield from ("", f"[{name}]")
        if name == "model":
            yield f'name = "{model}"'
        for item in table:
            if "." not in item.name:
                yield from ("", *_comment(item))
                yield f"{item.name} = {item.default}" if item.default else f"# {item.name} ="
        within = ""
        for item in table:
            outer, _, key = item.name.rpartition(".")
            if outer:
                if outer != within:
                    within = outer
                    yield from ("", f"# One of the tables of {outer}, each of which begins so:")
                    yield f"# [[{name}.{outer}]]"
                yield from _comment(item)
                yield f"# {key} = {item.default}"


def _comment(item: "Setting") -> list[str]:
    choices = f" One of {', '.join(item.choices)}." if item.choices else ""
    text = item.meaning.replace("``", "") + choices
    return textwrap.wrap(
        text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )
