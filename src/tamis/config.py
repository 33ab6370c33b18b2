"""Strict TOML to frozen dataclasses and back, overrides, and fingerprints.

A config is a tree of frozen dataclasses. This module alone turns text into such trees: an unknown,
missing or mistyped key raises with its full path and the nearest right key.
"""
# ruff: noqa: ANN401  (values of a parsed file are of any type until this module has checked them)

import dataclasses
import difflib
import hashlib
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import tomli_w

from tamis.errors import ConfigError

T = TypeVar("T")


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        ConfigError: The file is missing, a folder, unreadable or not TOML; for the latter the
            message has line and column.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: must exist, got no such file. Check the path.") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: must be a TOML file, got a folder. Name the file.") from error
    except OSError as error:
        raise ConfigError(
            f"{path}: must be a readable file, got {error.strerror}. Check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: must be UTF-8 text, got {error}. Save it as UTF-8.") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: must be valid TOML, got {error}. Mend that line.") from error


def write_toml(table: Mapping[str, Any]) -> str:
    """Render a table as TOML text, keys in the given order.

    A list of tables is always written as ``[[key]]``, however short, so that a person can append
    to it.
    """
    return "\n".join(_sections(table, path=""))


def from_table(
    cls: type[T], table: Mapping[str, Any], *, where: str = "", elsewhere: Sequence[str] = ()
) -> T:
    """Build a config dataclass from a parsed table.

    Args:
        cls: A dataclass whose annotations are scalars, ``Literal``, ``X | None``, tuples,
            ``dict[str, X]`` or further dataclasses.
        table: Parsed TOML. Keys must be fields of ``cls``.
        where: Path of ``table`` in its file, for messages.
        elsewhere: Paths of keys in other tables of the file, which a key may have been meant for.

    Returns:
        The config. Integers are accepted where a float is asked for, never the reverse.

    Raises:
        ConfigError: A key is unknown, missing or of another type, or the config's own check fails.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: must be a table, got {table!r}. Write it as [{where}].")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    check_keys(table, fields, where=where, elsewhere=elsewhere)
    hints = typing.get_type_hints(cls)
    values = {
        key: _convert(hints[key], value, where=_join(where, key)) for key, value in table.items()
    }
    missing = [
        name
        for name, field in fields.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(
            f"{where or 'the file'}: must set {', '.join(missing)}, got only "
            f"{', '.join(values) or 'an empty table'}. Add the missing key."
        )
    try:
        return cls(**values)
    except ConfigError as error:
        raise type(error)(f"{where}: {error}" if where else str(error)) from error


def check_keys(
    table: Mapping[str, Any], known: Iterable[str], *, where: str, elsewhere: Sequence[str] = ()
) -> None:
    """Raise for the first key of ``table`` that is not known, naming the nearest right one.

    Args:
        table: Parsed TOML.
        known: Its keys.
        where: Path of ``table`` in its file, for messages.
        elsewhere: Paths of keys in other tables of the file.

    Raises:
        ConfigError: A key is unknown.
    """
    names = list(known)
    for key in table:
        if key not in names:
            moved = [path for path in elsewhere if path.rpartition(".")[2] == key]
            near = moved or difflib.get_close_matches(key, names, n=1)
            hint = f"Use one of {', '.join(names)}."
            if near:
                hint = f"Did you mean {near[0]!r}?"
            elif not names:
                hint = f"{where or 'This table'} takes no keys; remove it."
            raise ConfigError(f"{_join(where, key)}: must be a known key, got {key!r}. {hint}")


def paths_of(cls: type[Any], *, where: str) -> tuple[str, ...]:
    """Path of every key of a config dataclass that stands at ``where``."""
    return tuple(_join(where, field.name) for field in dataclasses.fields(cls))


def to_table(config: Any) -> dict[str, Any]:
    """Turn a config back into a table of plain values; ``None`` entries are left out."""
    table = {}
    for field in dataclasses.fields(config):
        value = _plain(getattr(config, field.name))
        if value is not None:
            table[field.name] = value
    return table


def fingerprint(value: Any) -> str:
    """SHA-256 of the canonical JSON of a config, table or list, as 64 hexadecimal digits."""
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def override(table: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Apply ``a.b=value`` assignments, as the command line's ``--set`` takes them.

    The value is read as TOML (``0.1``, ``true``, ``[64, 32]``, ``"text"``); what is not TOML is
    taken as plain text, so ``--set model.name=dhen`` needs no inner quotes.

    Raises:
        ConfigError: An assignment has no ``=`` or runs through a key that is not a table.
    """
    result: dict[str, Any] = json.loads(json.dumps(_plain(table)))
    for assignment in assignments:
        path, sign, text = assignment.partition("=")
        if not sign or not path.strip():
            raise ConfigError(f"--set: must be of the form a.b=value, got {assignment!r}.")
        keys = path.strip().split(".")
        node = result
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {path}: {key!r} must be a table, got {node!r}.")
        node[keys[-1]] = _parse_value(text.strip())
    return result


def _sections(table: Mapping[str, Any], *, path: str, header: str = "") -> list[str]:
    """The text of a table, and those of the tables in it, which TOML puts after its values."""
    values, inner = {}, []
    for key, value in table.items():
        where = _join(path, tomli_w.dumps({key: 0}).removesuffix(" = 0\n"))
        if isinstance(value, Mapping):
            inner += _sections(value, path=where, header=f"[{where}]\n")
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            for item in value:
                inner += _sections(item, path=where, header=f"[[{where}]]\n")
        else:
            values[key] = value
    # A table of tables alone needs no header of its own.
    is_needed = values or not inner or header.startswith("[[")
    own = [header + tomli_w.dumps(values)] if is_needed and (header or values) else []
    return own + inner


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_table(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def _convert(hint: Any, value: Any, *, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return _convert_choice(arguments, value, where=where)
    if origin in (Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not types.NoneType]
        return _convert(inner[0], value, where=where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: must be a list, got {value!r}. Write it in brackets.")
        return tuple(
            _convert(arguments[0], item, where=f"{where}[{index}]")
            for index, item in enumerate(value)
        )
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: must be a table, got {value!r}.")
        return {
            key: _convert(arguments[1], item, where=_join(where, key))
            for key, item in value.items()
        }
    if dataclasses.is_dataclass(hint):
        return from_table(typing.cast("type[Any]", hint), value, where=where)
    if hint is Any:
        return value
    return _convert_scalar(hint, value, where=where)


def _convert_choice(choices: tuple[Any, ...], value: Any, *, where: str) -> Any:
    if value in choices and type(value) in {type(choice) for choice in choices}:
        return value
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(repr(choice) for choice in choices)
    raise ConfigError(f"{where}: must be one of {listed}, got {value!r}.{hint}")


def _convert_scalar(hint: type, value: Any, *, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if type(value) is hint:
        return value
    raise ConfigError(f"{where}: must be of type {hint.__name__}, got {value!r}.")
