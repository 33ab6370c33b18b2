"""What columns of texts are taken for, and what is said where numbers may have been meant."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tamis.data.inference import InferredSchema, infer_schema
from tamis.data.text_columns import number_doubt

COUNT = 200


def _infer(tmp_path: Path, texts: list[str]) -> InferredSchema:
    click = np.random.default_rng(0).integers(0, 2, COUNT)
    lines = [f"x{k % 3};{text};{y}" for k, (text, y) in enumerate(zip(texts, click, strict=True))]
    (tmp_path / "log.csv").write_text("\n".join(["device;it;click", *lines]) + "\n")
    return infer_schema(tmp_path / "log.csv", ["click"])


def test_histories_in_text_that_all_differ_are_sequences(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    texts = ["|".join(f"i{item}" for item in generator.integers(0, 90, 8)) for _ in range(COUNT)]
    assert len(set(texts)) == COUNT

    inferred = _infer(tmp_path, texts)

    field = inferred.schema.fields[1]
    assert (field.name, field.kind, field.separator) == ("it", "sequence", "|")
    assert inferred.warnings == ()


def test_decimal_commas_are_doubted(tmp_path: Path) -> None:
    inferred = _infer(tmp_path, [f"{k % 12},{k % 10}" for k in range(COUNT)])

    assert inferred.schema.fields[1].kind == "sequence"
    assert inferred.warnings == (
        "it: taken as a sequence of what is between commas; if '0,0' is a number, write it with a "
        "decimal point and no commas",
    )


def test_commas_between_thousands_are_doubted(tmp_path: Path) -> None:
    inferred = _infer(tmp_path, [f"{1 + k % 9},{100 + k % 40},{200 + k % 3}" for k in range(COUNT)])

    assert inferred.schema.fields[1].kind == "sequence"
    assert any("if '1,100,200' is a number" in text for text in inferred.warnings)


def test_commas_between_thousands_are_doubted_where_some_numbers_have_none(tmp_path: Path) -> None:
    values = [
        f"{k % 9}{k % 8}0.00" if k % 2 else f"{1 + k % 9},{100 + k % 40}.50" for k in range(COUNT)
    ]
    inferred = _infer(tmp_path, values)

    assert inferred.schema.fields[1].kind == "sequence"
    assert any("if '1,100.50' is a number" in text for text in inferred.warnings)


def test_texts_of_as_many_parts_each_may_be_one_value(tmp_path: Path) -> None:
    places = ["Paris, France", "New York, NY", "Lima, Peru"]
    inferred = _infer(tmp_path, [places[k % 3] for k in range(COUNT)])

    assert inferred.schema.fields[1].kind == "sequence"
    assert inferred.warnings == (
        "it: taken as a sequence of what is between commas; if 'Paris, France' is one value, set "
        "kind = 'categorical' and take out the separator",
    )
    differ = ["a,b", "a", "c,b,a"]
    assert not _infer(tmp_path, [differ[k % 3] for k in range(COUNT)]).warnings


def test_lists_without_commas_are_doubted(tmp_path: Path) -> None:
    inferred = _infer(tmp_path, [f"[{k % 7} {k % 5} 3]" for k in range(COUNT)])

    assert inferred.schema.fields[1].kind == "categorical"
    assert inferred.warnings == (
        "it: taken as a category; if '[0 0 3]' is a list of events, write commas between them",
    )


@pytest.mark.parametrize(
    "texts",
    [
        [f"[{k % 7}]" for k in range(COUNT)],
        [f"[word{k} and some other words {k % 9} here]" for k in range(COUNT)],
        [f"{100 + k % 9},{200 + k % 7},{300 + k % 5}" for k in range(COUNT)],
    ],
    ids=["one element", "prose", "ids of three digits"],
)
def test_what_is_no_list_without_commas_and_no_number_is_not_doubted(
    tmp_path: Path, texts: list[str]
) -> None:
    assert _infer(tmp_path, texts).warnings == ()


@pytest.mark.parametrize("mark", ["N/A", "n/a", "None", "-"])
def test_usual_marks_of_something_missing_leave_numbers_what_they_are(
    tmp_path: Path, mark: str
) -> None:
    texts = [mark if k % 7 == 0 else f"{k}.5" for k in range(COUNT)]

    assert _infer(tmp_path, texts).schema.fields[1].kind == "numeric"


def test_unusual_mark_in_many_rows_is_said(tmp_path: Path) -> None:
    inferred = _infer(tmp_path, ["NA" if k % 5 == 0 else str(k % 40) for k in range(COUNT)])

    assert inferred.schema.fields[1].kind == "categorical"
    assert inferred.warnings == (
        "it: taken as a category, since 'NA' is no number as 80% of the values are; mend it if the "
        "column is numeric",
    )


def test_amounts_with_a_sign_are_doubted_also_where_all_differ(tmp_path: Path) -> None:
    few = _infer(tmp_path, [f"${k % 30}.50" for k in range(COUNT)])
    many = _infer(tmp_path, [f"${k}.50" for k in range(COUNT)])

    said = "'$0.50' is a number with more than digits and a decimal point"
    assert few.warnings[0].startswith(f"it: taken as a category, since {said}; mend it")
    assert many.warnings == (f"it: left out, nearly every row has another value, and {said}",)


@pytest.mark.parametrize(
    "texts",
    [
        ["i1", "i2"],
        ["10.0.0.1", "10.0.0.2"],
        ["2024-01-02", "2024-01-03"],
        ["12", "A1", "B7", "C1", "D4", "E8", "13"],
        ["12", "A1", "12", "B7", "12", "C1", "12", "D4", "12", "E8", "12", "F3"],
        ["1", "2"],
        [],
    ],
)
def test_codes_are_not_taken_for_numbers_gone_wrong(texts: list[str]) -> None:
    assert number_doubt(pa.array(texts, pa.string())) == ""
