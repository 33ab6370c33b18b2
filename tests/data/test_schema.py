"""Schema files: what is wrong with one is said once, with its path."""

from dataclasses import replace
from pathlib import Path

import pytest

from tamis.config import read_toml
from tamis.data.schema import (
    Field,
    Ignored,
    Schema,
    Task,
    load_schema,
    schema_from_table,
    with_free_names,
)
from tamis.errors import SchemaError

_CLICK = Task(name="click", may_be_missing=True)
_FINAL = Task(name="final_click", kind="probability", distils="click", may_be_missing=True)


def test_schema_that_is_no_toml_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "schema.toml"
    path.write_text("fields = [\n")

    with pytest.raises(
        SchemaError, match=r"schema.toml: must be valid TOML, got .* Mend"
    ) as caught:
        load_schema(path)

    assert str(caught.value).count(str(path)) == 1


def test_missing_schema_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"no.toml: must exist, got no such file") as caught:
        load_schema(tmp_path / "no.toml")

    assert str(caught.value).count("no.toml") == 1


def test_folder_given_as_schema_says_which_file_to_name(tmp_path: Path) -> None:
    with pytest.raises(
        SchemaError, match=r"must be a schema file, got a folder. Name .*schema.tom"
    ):
        load_schema(tmp_path)


def _schema(*tasks: Task) -> Schema:
    return Schema(fields=(Field(name="ad", kind="categorical"),), tasks=tasks)


def test_distilled_tasks_survive_the_file(tmp_path: Path) -> None:
    schema = _schema(_CLICK, _FINAL)
    path = tmp_path / "schema.toml"
    path.write_text(schema.to_toml())

    assert schema_from_table(read_toml(path)) == schema


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ((_FINAL, _CLICK), r"distils must name an earlier task .* got 'click'. Such tasks: \[\]"),
        (
            (_CLICK, Task(name="copy", distils="click")),
            r"'copy': a task that distils 'click' must be of kind 'probability', got 'binary'",
        ),
        (
            (
                _CLICK,
                Task(name="f", kind="probability", distils="click", observed_when="click"),
            ),
            r"'f': a later stage predicts also .* got observed_when = 'click'. Leave it out",
        ),
        (
            (_CLICK, _FINAL, Task(name="again", kind="probability", distils="final_click")),
            r"'again': distils must name an earlier task with labels .* got 'final_click'",
        ),
        (
            (_CLICK, _FINAL, Task(name="again", kind="probability", distils="click")),
            r"'again': one task may distil 'click', got a second one",
        ),
    ],
)
def test_what_a_task_distils_is_checked(tasks: tuple[Task, ...], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        _schema(*tasks)


_KIND = Field(name="kind", kind="categorical", side="item")
_PAST = Field(name="past", kind="sequence", side="user", shares="kind")
_COUNT = Field(name="same", kind="numeric", transform="none", counts="past")


def test_number_that_counts_events_is_read_back_and_reaches_the_models(tmp_path: Path) -> None:
    schema = Schema(fields=(_KIND, _PAST, _COUNT), tasks=(_CLICK,))
    path = tmp_path / "schema.toml"
    path.write_text(schema.to_toml())

    assert load_schema(path) == schema


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((_KIND, _COUNT), "'same': counts must name a sequence field .* got 'past'"),
        (
            (_KIND, replace(_PAST, shares=""), _COUNT),
            "'same': counts must name a sequence field that shares a category .* got 'past'",
        ),
        ((_KIND, _PAST, replace(_COUNT, counts="kind")), "counts must name .* got 'kind'"),
    ],
)
def test_what_a_number_counts_is_checked(fields: tuple[Field, ...], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        Schema(fields=fields, tasks=(_CLICK,))


def test_counts_are_numbers_as_they_are() -> None:
    with pytest.raises(SchemaError, match=r"'same': counts is for .* got kind 'numeric' and trans"):
        replace(_COUNT, transform="log")
    with pytest.raises(SchemaError, match="got kind 'categorical'"):
        replace(_KIND, counts="past")


def test_short_schema_is_written_so_that_fields_and_tasks_can_be_appended(tmp_path: Path) -> None:
    schema = replace(_schema(Task(name="click")), ignored=(Ignored(column="row"),))
    path = tmp_path / "schema.toml"
    more = '\n[[fields]]\nname = "price"\nkind = "numeric"\n\n[[ignored]]\ncolumn = "day"\n'
    path.write_text(schema.to_editable_toml() + more)

    read = load_schema(path)

    assert [field.name for field in read.fields] == ["ad", "price"]
    assert [item.column for item in read.ignored] == ["row", "day"]


def test_text_in_datasets_keeps_its_layout_and_says_what_the_editable_one_says(
    tmp_path: Path,
) -> None:
    # Fingerprints of datasets hold its bytes, and rows of results those fingerprints.
    schema = replace(_schema(Task(name="click")), ignored=(Ignored(column="row"),))
    kept, edited = tmp_path / "kept.toml", tmp_path / "edited.toml"
    kept.write_text(schema.to_toml())
    edited.write_text(schema.to_editable_toml())

    assert 'tasks = [\n    { name = "click", kind = "binary" },\n]' in kept.read_text()
    assert load_schema(kept) == load_schema(edited) == schema


@pytest.mark.parametrize("name", ["row", "weight", "label:x", "role:user"])
def test_field_named_like_a_column_of_every_dataset_is_refused(name: str) -> None:
    with pytest.raises(SchemaError, match=r"must not be that of a column which .* and column = "):
        Schema(fields=(Field(name=name, kind="numeric"),), tasks=(Task(name="click"),))

    free = with_free_names(
        [Field(name=name, kind="categorical"), Field(name="x", kind="sequence", shares=name)]
    )
    schema = Schema(fields=free, tasks=(Task(name="click"),))
    assert [(field.name, field.source, field.shares) for field in schema.fields] == [
        (f"field:{name}", name, ""),
        ("x", "x", f"field:{name}"),
    ]


def test_fields_of_one_group_that_keep_other_lengths_are_refused() -> None:
    fields = (
        Field(name="a", kind="sequence", group="g", max_length=3),
        Field(name="b", kind="sequence", group="g", max_length=5),
    )

    with pytest.raises(SchemaError, match=r"field 'b': .* got max_length 5 beside 3 of 'a'"):
        Schema(fields=fields, tasks=(Task(name="click"),))


def test_scale_of_a_regression_survives_the_file(tmp_path: Path) -> None:
    schema = _schema(Task(name="spend", kind="regression", mean=0.0, std=2.5), _CLICK)
    path = tmp_path / "schema.toml"

    for text in (schema.to_toml(), schema.to_editable_toml()):
        path.write_text(text)
        assert load_schema(path) == schema
    assert text.count("mean") == text.count("std") == 1


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            Task(name="spend", kind="regression", mean=1.0),
            "task 'spend': mean and std must be set together, got mean alone. Set std too",
        ),
        (
            Task(name="spend", kind="regression", std=1.0),
            "got std alone. Set mean too, or leave both out: ingest takes those of the training",
        ),
        (
            Task(name="click", mean=0.1, std=0.3),
            "task 'click': mean and std are for kind 'regression' only, got 'binary'",
        ),
        (
            Task(name="spend", kind="regression", mean=0.0, std=0.0),
            "mean must be finite and std finite and above 0, got 0.0 and 0.0",
        ),
        (
            Task(name="spend", kind="regression", mean=float("nan"), std=1.0),
            "mean must be finite and std finite and above 0, got nan and 1.0",
        ),
    ],
)
def test_scale_of_a_task_is_checked(task: Task, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        _schema(task)
