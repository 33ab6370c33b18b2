"""Why a log could not be read, in the words of whoever wrote it: file, row, what to do.

Arrow's messages count rows from the start of a block, name columns by number, and speak of types.
"""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

_CSV_WIDTH = re.compile(r"CSV parse error: (?:Row #(\d+): )?Expected (\d+) columns, got (\d+)")
_CSV_VALUE = re.compile(
    r"In CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to (\w+)(?:\[\w+\])?: "
    r"(?:invalid value '(.*)'|(.*))",
    re.DOTALL,
)
_LONGEST_LINE = 1 << 24
_KIND_WORDS = {"str": "a text", "bool": "true or false", "number": "a number", "list": "a list"}


def said(error: Exception) -> str:
    """An error's own words, to be followed by a full stop."""
    return " ".join(str(error).split()).rstrip(".")


def wrong_csv_value(message: str) -> tuple[int, str, str] | None:
    """Column (from 0), type and value of Arrow's message about a CSV value, if it is one."""
    match = _CSV_VALUE.search(message)
    return None if match is None else (int(match[1]), match[3], match[4] or match[5] or "")


def explain_csv(path: Path, message: str, names: Sequence[str]) -> str:
    """A whole message from Arrow's about a CSV file."""
    if match := _CSV_WIDTH.search(message):
        return (
            f"{path}{_row(match[1])}: every row must have as many values as the header, "
            f"{match[2]}, got {match[3]}. Mend it: a value may lack quotes, or a quote not end."
        )
    if match := _CSV_VALUE.search(message):
        place = f"{path}, column {names[int(match[1])]!r}{_row(match[2])}"
        if match[3] == "string":
            return f"{place}: text must be UTF-8, got other bytes. Save the file as UTF-8."
        value = match[4] if match[4] is not None else match[5]
        return (
            f"{place}: a numeric field must hold numbers, got {value!r}. Mend it, or make the "
            f"field categorical."
        )
    return explain_other(path, message)


def _row(arrows: str | None) -> str:
    """A row for a message; Arrow counts the header as row 1, and not always."""
    return f", row {int(arrows) - 1}" if arrows else ""


def explain_json(path: Path, message: str) -> str:
    """A whole message from Arrow's about a file of JSON lines; the file is read again."""
    if problem := _json_problem(path):
        return f"{path}{problem}"
    if "changed from" in message or "convert JSON" in message:
        return (
            f"{path}: a column must hold values of the kind of its first ones, got {message}. "
            f"Write all of them in one way, or convert the file to Parquet."
        )
    return explain_other(path, message)


def lacks_column(
    name: str,
    names: Sequence[str],
    *,
    where: str,
    what: str = "column",
    advice: str = "Mend the schema or the log.",
) -> str:
    """What is said where a log has no column of a name.

    Args:
        name: The column.
        names: Columns that there are.
        where: The file.
        what: Which column it is.
        advice: What to do where no name is near.
    """
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else advice
    return f"{where}: must hold {what} {name!r}, got {listed(names)}. {hint}"


def listed(names: Sequence[str]) -> str:
    """Names of columns for a message, in quotes where their blanks would not be seen."""
    return ", ".join(name if name and name == name.strip() else repr(name) for name in names)


def explain_other(path: Path, message: str) -> str:
    """A whole message from any other of Arrow's."""
    if "not implemented" in message.lower() or "unsupported" in message.lower():
        return (
            f"{path}: must hold columns that can be read, got {message}. Write them as numbers, "
            f"texts, times or lists of them."
        )
    return (
        f"{path}: must be readable, got {message}. The file may be cut short or damaged; write it "
        f"anew."
    )


def _json_problem(path: Path) -> str | None:
    """What is wrong with the first wrong row; None where every row is as it must be."""
    kinds: dict[str, str] = {}
    row = 0
    for line, is_last in _lines(path):
        for found in _values_of(line):
            row += 1
            place = f", row {row}"
            if isinstance(found, json.JSONDecodeError):
                if row == 1 and line.lstrip().startswith("["):
                    return _not_an_object(place, [])
                cut = " The file may be cut short; write it anew." if is_last else " Mend that row."
                return (
                    f"{place}: must be a JSON object on a line of its own, got a line that is no "
                    f"JSON ({found.msg} at character {found.pos + 1}).{cut}"
                )
            if not isinstance(found, _Members):
                return _not_an_object(place, found)
            if problem := _wrong_member(found, kinds):
                name, what = problem
                return f", column {name!r}, row {row}: {what}"
    return None


def _not_an_object(place: str, value: Any) -> str:  # noqa: ANN401  (any JSON value)
    advice = "Write one object per line" if isinstance(value, list) else "Mend that row"
    return f"{place}: must be a JSON object, got {_kind_in_words(value)}. {advice}."


def _wrong_member(members: "_Members", kinds: dict[str, str]) -> tuple[str, str] | None:
    """Name and problem of a member that stands there twice or is not of its column's kind."""
    seen = set()
    for name, value in members.pairs:
        if name in seen:
            return name, "a row must name each column once, got it twice. Mend that row."
        seen.add(name)
        if value is None:
            continue
        kind = _kind(value)
        if kinds.setdefault(name, kind) != kind:
            shown = f" ({value!r})" if isinstance(value, (str, int, float)) else ""
            before = _KIND_WORDS.get(kinds[name], "an object")
            return name, (
                f"a column must hold values of one kind, got {_kind_in_words(value)}{shown} after "
                f"{before} in rows before it. Mend that row."
            )
    return None


class _Members:
    """A JSON object as its members in order; a dict would hide one that is named twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


def _lines(path: Path) -> Iterator[tuple[str, bool]]:
    """Lines that are not blank, each with whether it is the last of the file."""
    before: bytes | None = None
    for line in _raw_lines(path):
        if before is not None:
            yield before.decode(errors="replace"), False
        before = line
    if before is not None:
        yield before.decode(errors="replace"), True


def _raw_lines(path: Path) -> Iterator[bytes]:
    rest = b""
    with pa.input_stream(str(path), compression="detect") as stream:
        while (block := stream.read(1 << 20)) and len(rest) < _LONGEST_LINE:
            *parts, rest = (rest + block).split(b"\n")
            yield from (part for part in parts if part.strip())
    if rest.strip():
        yield rest


def _values_of(line: str) -> Iterator[Any]:
    """JSON values of a line; last of all the error, if there is one."""
    decoder = json.JSONDecoder(object_pairs_hook=_Members)
    line = line.strip()
    position = 0
    while position < len(line):
        try:
            value, position = decoder.raw_decode(line, position)
        except json.JSONDecodeError as error:
            yield error
            return
        yield value
        while position < len(line) and line[position].isspace():
            position += 1


def _kind(value: Any) -> str:  # noqa: ANN401  (any JSON value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "number"
    return "object" if isinstance(value, _Members) else type(value).__name__


def _kind_in_words(value: Any) -> str:  # noqa: ANN401  (any JSON value)
    return "null" if value is None else _KIND_WORDS.get(_kind(value), "an object")
