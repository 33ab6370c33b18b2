"""FuxiCTR's config files: which they are, their entries, and the values in them."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tamis.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML without objects, but with the tuples that published configs hold."""


def _tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node))


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)


def read_configs(folder: Path, kind: str) -> dict[Path, dict[str, Any]]:
    """Entries of each file of a kind: of ``<kind>.yaml`` or, without it, ``<kind>/*.yaml``.

    Raises:
        ConfigError: There is no such file, or one is no YAML of named entries.
    """
    alone = folder / f"{kind}.yaml"
    several = [] if alone.exists() else sorted((folder / kind).glob("*.yaml"))
    return {path: _read(path) for path in several or [alone]}


def holder(configs: Mapping[Path, Mapping[str, Any]], name: object) -> Path | None:
    """The file that holds an entry, if one does."""
    if not isinstance(name, str):
        return None
    return next((path for path, entries in configs.items() if name in entries), None)


@contextlib.contextmanager
def blamed_on(*where: Path | str) -> Iterator[None]:
    """Put the file, and perhaps an entry of it, before what is wrong in it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{': '.join(map(str, where))}: {error}") from error


def as_table(value: object, where: str) -> Mapping[str, Any]:
    """A value that must hold named entries.

    Raises:
        ConfigError: It does not.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: must hold named entries, got {value!r}.")
    return value


def as_list(value: object, where: str) -> list[Any]:
    """A value that must be a list.

    Raises:
        ConfigError: It is none.
    """
    if not isinstance(value, list):
        raise ConfigError(f"{where}: must be a list, got {value!r}.")
    return value


def number(table: Mapping[str, Any], key: str, default: float) -> float:
    """A number of a table; null and an absent key take the default.

    Raises:
        ConfigError: It is none.
    """
    value = table.get(key)
    try:
        return float(default if value is None else value)
    except (TypeError, ValueError):
        raise ConfigError(f"{key}: must be a number, got {value!r}. Mend it.") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"{path}: must be a readable file, got {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: must be YAML, got {error}.") from error
    return dict(as_table(found, str(path)))
