"""What a column of texts is: a sequence, prose or categories, and what may have been meant."""

import pyarrow as pa
import pyarrow.compute as pc

from tamis.data.columns import ZEROS_IN_FRONT, split_items
from tamis.data.schema import Field

_SEPARATORS = "|,;"
_FEW_VALUES = 64
# Nearly all: a few bad values do not change what a column is; ingest names them.
_NEARLY_ALL = 0.95
# So many different texts among numbers are marks of something missing, and more are codes.
_FEW_MARKS = 5
_NUMBER_LIKE = r"^\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*$"
# Numbers as people write them: $12.50, 1,234.5, 12,5 and 30 %.
_WRITTEN_NUMBER = r"^\s*[+-]?[$€£¥]?\s*\d+(?:[.,]\d{3})*(?:[.,]\d+)?\s*[$€£¥%]?\s*$"
_DECIMAL_COMMA = r"^\s*\d+(?:,\d+)?\s*$"
# 950.00 among 1,234.50 too.
_THOUSANDS = r"^\s*\d{1,3}(?:,\d{3})*(?:\.\d+)?\s*$"
# A history of ids of three digits has three in front too.
_FEW_IN_FRONT = r"^\s*\d{1,2},"
_DIGITS = r"^\s*\d+\s*$"
_BRACKETED = r"^\s*\[.*\]\s*$"
# What NumPy writes.
_BLANKS_IN_BRACKETS = r"^\s*\[\s*\S+(?:\s+\S+)+\s*\]\s*$"
_NO_EVENTS = r", |\d\.\d"
_ID_LIKE = r"^[\w.:-]*$"


def infer_text_field(name: str, column: pa.Array, warnings: list[str]) -> Field:
    """The field of a column of texts.

    Args:
        name: The column's.
        column: The sample of it.
        warnings: What a person should look at is added to it.
    """
    distinct = int(pc.count_distinct(column).as_py())
    found = _parts(column)
    if found is not None:
        separator, words = found
        texts = column.drop_null()
        if separator == "," and _may_be_numbers(texts):
            first = next(text for text in texts.to_pylist() if "," in text)
            warnings.append(
                f"{name}: taken as a sequence of what is between commas; if {first!r} is a number, "
                f"write it with a decimal point and no commas"
            )
        elif separator == "," and _may_be_one_value(texts):
            warnings.append(
                f"{name}: taken as a sequence of what is between commas; if {texts[0].as_py()!r} "
                f"is one value, set kind = 'categorical' and take out the separator"
            )
        reason = f"strings of {words} different parts between {separator!r}"
        return Field(name=name, kind="sequence", separator=separator, reason=reason)
    if doubt := number_doubt(column):
        warnings.append(
            f"{name}: taken as a category, since {doubt}; mend it if the column is numeric"
        )
    if mean_words(column) >= 4 and distinct > _FEW_VALUES:
        return Field(
            name=name,
            kind="text",
            encoding="hashing",
            num_buckets=1 << 16,
            max_length=64,
            reason="long strings of words",
        )
    texts = column.drop_null()
    if share_of(texts, _BLANKS_IN_BRACKETS) >= 0.5:
        first = texts.filter(pc.match_substring_regex(texts, _BLANKS_IN_BRACKETS))[0].as_py()
        warnings.append(
            f"{name}: taken as a category; if {first!r} is a list of events, write commas between "
            f"them"
        )
    what = "digits with zeros in front" if _are_codes(texts) else "strings"
    return Field(name=name, kind="categorical", reason=f"{what}, {distinct} values")


def _are_codes(texts: pa.Array) -> bool:
    """Whether texts are whole numbers of which some begin with 0."""
    begin = pc.match_substring_regex(texts, ZEROS_IN_FRONT)
    return bool(pc.any(begin).as_py()) and share_of(texts, _DIGITS) == 1


def _may_be_numbers(texts: pa.Array) -> bool:
    """Whether texts with commas may be numbers with a decimal comma, or with thousands apart."""
    if share_of(texts, _DECIMAL_COMMA) >= _NEARLY_ALL:
        return True
    return share_of(texts, _THOUSANDS) >= _NEARLY_ALL and share_of(texts, _FEW_IN_FRONT) > 0


def _may_be_one_value(texts: pa.Array) -> bool:
    """Whether texts may be no lists: those of a place, say, or of two coordinates.

    Nearly all have as many parts then, and blanks or decimals, which events hardly have. What is in
    brackets is meant as a list.
    """
    if share_of(texts, _BRACKETED) >= 0.5 or share_of(texts, _NO_EVENTS) < 0.5:
        return False
    usual = pc.mode(pc.count_substring(texts, ","))[0].as_py()
    return bool(usual["mode"] > 0 and usual["count"] >= _NEARLY_ALL * len(texts))


def is_separated(column: pa.Array) -> bool:
    """Whether texts are sequences with a separator between their events."""
    return _parts(column) is not None


def number_doubt(column: pa.Array) -> str:
    """Why texts that may be meant as numbers are none; empty where they are not meant so."""
    texts = column.drop_null()
    numbers = pc.match_substring_regex(texts, _NUMBER_LIKE)
    odd = texts.filter(pc.invert(numbers))
    share = float(pc.mean(numbers.cast(pa.float64())).as_py() or 0.0)
    if not len(odd):
        return ""
    if share >= _NEARLY_ALL:
        return f"{odd[0].as_py()!r} is no number as nearly all other values are"
    if share >= 0.5 and pc.count_distinct(odd).as_py() <= _FEW_MARKS:
        return f"{odd[0].as_py()!r} is no number as {share:.0%} of the values are"
    # Plain numbers are written so too: half of the texts may be these, and the others codes.
    written = odd.filter(pc.match_substring_regex(odd, _WRITTEN_NUMBER))
    if len(written) and share_of(texts, _WRITTEN_NUMBER) >= 0.5:
        return f"{written[0].as_py()!r} is a number with more than digits and a decimal point"
    return ""


def mean_words(column: pa.Array) -> float:
    """Words of a text on average."""
    spaces = pc.count_substring(column.drop_null(), " ")
    return float(pc.mean(spaces).as_py() or 0.0) + 1.0


def share_of(texts: pa.Array, pattern: str) -> float:
    """Share of the texts that match a pattern."""
    matches = pc.match_substring_regex(texts, pattern)
    return float(pc.mean(matches.cast(pa.float64())).as_py() or 0.0)


def _parts(column: pa.Array) -> tuple[str, int] | None:
    """Separator of texts that are sequences, and how many different parts it leaves."""
    texts = column.drop_null()
    distinct = int(pc.count_distinct(texts).as_py())
    bracketed = share_of(texts, _BRACKETED) >= _NEARLY_ALL
    for separator in _SEPARATORS:
        matches = pc.match_substring(texts, separator)
        share = float(pc.mean(matches.cast(pa.float64())).as_py() or 0.0)
        if share < (0.05 if bracketed else 0.3):
            continue
        parts = split_items(texts, separator).flatten()
        words = int(pc.count_distinct(parts).as_py())
        # Many different parts are those of prose, or ids of a large catalogue.
        are_few = words <= 2 * distinct or share_of(parts, _ID_LIKE) >= _NEARLY_ALL
        if bracketed or (are_few and words < 0.5 * len(parts)):
            return separator, words
    return None
