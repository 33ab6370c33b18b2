"""Data sets of FuxiCTR's configs as schemas."""

import re
from pathlib import Path

import pytest

from tamis.data.schema import Field
from tamis.errors import ConfigError
from tamis.importers import fuxictr


def test_data_set_becomes_a_schema(folder: Path) -> None:
    imported = fuxictr.read(folder, "DIN_test")
    by_name = {field.name: field for field in imported.schema.fields}

    assert list(by_name) == [
        *("adgroup_id", "cate_id", "brand", "price", "age", "hour"),
        *("click_sequence", "cate_sequence"),
    ]
    assert by_name["adgroup_id"] == Field(name="adgroup_id", kind="categorical", min_count=2)
    assert by_name["brand"].encoding == "hashing"
    assert by_name["brand"].num_buckets == 100
    assert by_name["price"].transform == "standardise"
    assert by_name["age"].transform == "none"
    assert by_name["click_sequence"] == Field(
        name="click_sequence",
        kind="sequence",
        separator="^",
        max_length=20,
        shares="adgroup_id",
        group="history",
    )
    assert by_name["cate_sequence"].group == "history"
    assert imported.schema.roles.user == "userid"
    assert [task.name for task in imported.schema.tasks] == ["clk"]
    assert [ignored.column for ignored in imported.schema.ignored] == ["pid", "day"]
    assert imported.notes == (
        "hour: preprocess = 'convert_hour' is not carried over.",
        "price, age: FuxiCTR takes a missing number for 0 where fill_na says nothing else; tamis "
        "takes the mean of the training rows.",
        "categories: FuxiCTR takes an empty value of a CSV file alone for missing; to tamis NULL, "
        "null, \\N, NaN, nan, N/A, n/a, #N/A, None, - are missing too.",
        "click_sequence, cate_sequence: FuxiCTR counts a value for min_categr_count in each column "
        "apart; tamis counts it in all columns that share a table.",
        "optimizer: FuxiCTR moves whole tables at each step, by Adam and by L2, and clips all "
        "gradients together; tamis moves the rows of the batch, makes up for the L2 that they "
        "missed, and clips the gradients of the network alone.",
        "monitor = {'AUC': 1, 'logloss': -1} became auc.",
    )
    assert set(imported.files) == {"train", "valid", "test"}
    assert all(path.exists() for path in imported.files.values())


_GIVEN = """        - {name: look, active: True, dtype: str, type: categorical, source: item,
           preprocess: copy_from(adgroup_id), pretrained_emb: ../looks.h5, embedding_dim: 3,
           feature_encoder: "nn.Linear(3, 10, bias=False)"WITH}
        - {name: past_looks, active: True, dtype: str, type: sequence, splitter: ^, max_len: 20,
           padding: pre, preprocess: copy_from(click_sequence), pretrained_emb: ../looks.h5,
           share_embedding: look, embedding_dim: 3,
           feature_encoder: ["nn.Linear(3, 10, bias=False)", "layers.MaskedAveragePooling()"]}
        - {name: group_id,"""


def _with_vectors(folder: Path, more: str = "") -> None:
    path = folder / "dataset_config.yaml"
    given = _GIVEN.replace("WITH", more)
    path.write_text(path.read_text().replace("        - {name: group_id,", given))
    (folder.parent / "looks.h5").touch()


def test_frozen_pretrained_vectors_are_carried_over(folder: Path) -> None:
    plain = fuxictr.read(folder, "DIN_test")
    _with_vectors(folder)
    imported = fuxictr.read(folder, "DIN_test")
    by_name = {field.name: field for field in imported.schema.fields}

    assert by_name["look"] == Field(
        name="look", kind="categorical", column="adgroup_id", side="item", vectors=3
    )
    assert (by_name["past_looks"].shares, by_name["past_looks"].vectors) == ("look", 0)
    assert {name: path.name for name, path in imported.vectors.items()} == {"look": "looks.h5"}
    lost = [note for note in imported.notes if "not carried over" in note]
    assert lost == ["hour: preprocess = 'convert_hour' is not carried over."]
    assert plain.vectors == {}


@pytest.mark.parametrize(
    ("more", "notes"),
    [
        (", freeze_emb: False", ["look: freeze_emb = False is not carried over; its vectors stay"]),
        (
            ", pretrain_usage: sum",
            ["look: pretrain_usage = 'sum' is not carried over; add a field"],
        ),
        (
            ", category_processor: hash_bucket, num_buckets: 9",
            [
                "look: pretrained_emb = '../looks.h5' is not carried over: vectors are for",
                "look: embedding_dim = 3 is not carried over",
                "look: feature_encoder = 'nn.Linear(3, 10, bias=False)' is not carried over",
            ],
        ),
    ],
)
def test_what_else_pretrained_vectors_do_is_told(folder: Path, more: str, notes: list[str]) -> None:
    _with_vectors(folder, more)
    found = [note for note in fuxictr.read(folder, "DIN_test").notes if note.startswith("look:")]

    assert len(found) == len(notes), found
    assert all(got.startswith(wanted) for got, wanted in zip(found, notes, strict=True)), found


@pytest.mark.parametrize(
    ("file", "old", "new", "owner"),
    [
        # FuxiCTR gives a history a table of its own where that of the item is not among them.
        (
            "model_config.yaml",
            "attention_dropout: 0",
            "use_features: [cate_id, click_sequence]",
            "adgroup_id",
        ),
        # FuxiCTR's histories may share the table of another history.
        (
            "dataset_config.yaml",
            "share_embedding: adgroup_id",
            "share_embedding: cate_sequence",
            "cate_sequence",
        ),
    ],
)
def test_without_a_category_to_share_with_a_history_has_its_own_table(
    folder: Path, file: str, old: str, new: str, owner: str
) -> None:
    path = folder / file
    path.write_text(path.read_text().replace(old, new))
    imported = fuxictr.read(folder, "DIN_test")
    (past,) = (field for field in imported.schema.fields if field.name == "click_sequence")

    assert (past.shares, past.min_count) == ("", 2)
    assert (
        f"click_sequence: there is no categorical input {owner} with a table that it could share; "
        "it has its own." in imported.notes
    )


@pytest.mark.parametrize(
    ("column", "user", "note"),
    [
        ("copy_from(userid)", "userid", "userid: no group_id says who the user is; it is taken"),
        ("copy_from(UID)", "UID", "UID: no group_id says who the user is; it is taken"),
        (
            "copy_from(session)",
            "",
            r"no group_id says who the user is, nor is a meta column \(day, group_id\) named",
        ),
    ],
)
def test_without_a_group_the_user_is_a_meta_column_named_so_or_nobody(
    folder: Path, column: str, user: str, note: str
) -> None:
    path = folder / "model_config.yaml"
    path.write_text(path.read_text().replace("group_id: group_id", "group_id: null"))
    path = folder / "dataset_config.yaml"
    path.write_text(path.read_text().replace("copy_from(userid)", column))
    imported = fuxictr.read(folder, "DIN_test")

    assert imported.schema.roles.user == user
    # The first meta column is the day, which is nobody.
    assert "day" in [ignored.column for ignored in imported.schema.ignored]
    assert any(re.match(note, said) for said in imported.notes)


@pytest.mark.parametrize("column", ["user-id", "user id", "utilisateur·é"])
def test_copied_column_may_have_any_name(folder: Path, column: str) -> None:
    path = folder / "dataset_config.yaml"
    text = path.read_text(encoding="utf-8").replace("copy_from(userid)", f"copy_from({column})")
    path.write_text(text, encoding="utf-8")

    assert fuxictr.read(folder, "DIN_test").schema.roles.user == column


def test_fillings_of_missing_values_are_said(folder: Path) -> None:
    path = folder / "dataset_config.yaml"
    text = path.read_text().replace("name: age, active", "name: age, na_value: 0, active")
    path.write_text(text)

    assert "age: na_value = 0 is not carried over." in fuxictr.read(folder, "DIN_test").notes


@pytest.mark.parametrize(
    ("encoder", "is_told"),
    [
        ("layers.MaskedSumPooling()", True),
        ("layers.MaskedAveragePooling()", False),
        ("null", False),
    ],
)
def test_another_pooling_than_the_mean_is_said(folder: Path, encoder: str, is_told: bool) -> None:
    path = folder / "dataset_config.yaml"
    new = f"feature_encoder: {encoder}, max_len: 20"
    path.write_text(path.read_text().replace("max_len: 20", new))

    note = f"click_sequence: feature_encoder = {encoder!r} is not carried over."
    assert (note in fuxictr.read(folder, "DIN_test").notes) == is_told


def test_histories_keep_the_separator_and_say_which_end_they_keep(folder: Path) -> None:
    path = folder / "dataset_config.yaml"
    text = path.read_text().replace("splitter: ^,\n           max_len: 20, padding: pre, ", "")
    path.write_text(text)
    imported = fuxictr.read(folder, "DIN_test")
    by_name = {field.name: field for field in imported.schema.fields}

    assert by_name["click_sequence"].separator == "^"
    assert by_name["click_sequence"].max_length == 50
    assert any(note.startswith("click_sequence: max_len is left") for note in imported.notes)
    assert any("padding post makes FuxiCTR keep the first" in note for note in imported.notes)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: price, active: True, dtype: float, type:", "type:", "must have a name, got"),
        ("dtype: float, type: numeric}", "dtype: float}", "must have a type, got"),
        ("label_col: {name: clk, dtype: float}", "label_col: clk", "label_col: must hold named"),
        ("label_col: {name: clk, dtype: float}", "label_col: {}", "label_col: must have a name"),
        ("data_format: csv", "rebuild_dataset: False", "must be raw csv or parquet"),
        ("num_buckets: 100", "num_buckets: x", "num_buckets: must be a number, got 'x'"),
        ("train_data: ../data/tiny/train.csv", "", "must name train_data, got valid_data, test"),
        (
            "valid_data: ../data/tiny/valid.csv",
            "",
            "must name valid_data beside test_data, got train_data, test_data. Cut it from",
        ),
        (
            "label_col: {name: clk,",
            "label_col: {name: clk, preprocess: make_label,",
            r"label_col: preprocess must be copy_from\(column\), got 'make_label'. Write the label",
        ),
    ],
)
def test_data_set_of_another_shape_is_refused(
    folder: Path, old: str, new: str, message: str
) -> None:
    path = folder / "dataset_config.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))

    with pytest.raises(ConfigError, match=message):
        fuxictr.read(folder, "DIN_test")


def test_training_data_alone_are_one_log_to_split(folder: Path, tmp_path: Path) -> None:
    path = folder / "dataset_config.yaml"
    lines = [line for line in path.read_text().splitlines() if "tiny/valid" not in line]
    text = "\n".join(line for line in lines if "tiny/test" not in line)
    path.write_text(text.replace("tiny_seq:", "tiny_seq:\n    valid_size: 0.1"))
    imported = fuxictr.read(folder, "DIN_test")

    assert imported.files == tmp_path / "zoo" / "../data/tiny/train.csv"
    assert imported.notes[0].startswith("valid_size = 0.1 is not carried over; see tamis ingest")


def test_missing_data_file_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "tiny" / "test.csv").unlink()

    with pytest.raises(ConfigError, match=r"\.\./data/tiny/test\.csv: must exist beside"):
        fuxictr.read(folder, "DIN_test")


def test_sizes_beside_files_of_splits_do_not_ask_for_a_split(folder: Path) -> None:
    path = folder / "dataset_config.yaml"
    path.write_text(path.read_text().replace("tiny_seq:", "tiny_seq:\n    valid_size: 0.1"))

    note = "valid_size = 0.1 is not carried over; each file is a split as it is."
    assert fuxictr.read(folder, "DIN_test").notes[0] == note


def test_column_that_fuxictr_makes_must_be_in_the_files(folder: Path) -> None:
    path = folder / "dataset_config.yaml"
    text = path.read_text()
    made = text.replace("name: hour,", "name: weekday,").replace("convert_hour", "convert_weekday")
    path.write_text(made)

    message = (
        r"column 'weekday': must be in .*train\.csv, got none: FuxiCTR makes it by "
        r"convert_weekday\. Add it to the files, or set active: False\."
    )
    with pytest.raises(ConfigError, match=message):
        fuxictr.read(folder, "DIN_test")

    path.write_text(made.replace("name: weekday, active: True", "name: weekday, active: False"))
    ignored = fuxictr.read(folder, "DIN_test").schema.ignored
    assert [one.column for one in ignored] == ["pid", "weekday", "day"]


def test_user_that_fuxictr_makes_must_be_in_the_files(folder: Path) -> None:
    path = folder / "dataset_config.yaml"
    path.write_text(path.read_text().replace("copy_from(userid)", "make_group"))

    with pytest.raises(ConfigError, match=r"column 'group_id': must be in .* by make_group"):
        fuxictr.read(folder, "DIN_test")


def test_group_of_the_data_set_is_over_that_of_the_model(folder: Path) -> None:
    path = folder / "dataset_config.yaml"
    path.write_text(path.read_text().replace("tiny_seq:", "tiny_seq:\n    group_id: day"))

    assert fuxictr.read(folder, "DIN_test").schema.roles.user == "day"
    assert fuxictr.read(folder, "tiny_seq").schema.roles.user == "day"


def test_models_learn_the_first_label_alone(folder: Path) -> None:
    path = folder / "dataset_config.yaml"
    path.write_text(
        path.read_text().replace(
            "{name: clk, dtype: float}", "[{name: clk, dtype: float}, {name: buy, dtype: float}]"
        )
    )
    of_model = fuxictr.read(folder, "DIN_test")
    of_data = fuxictr.read(folder, "tiny_seq")

    assert [task.name for task in of_model.schema.tasks] == ["clk"]
    assert of_model.schema.ignored[-1].column == "buy"
    assert "buy: left out; FuxiCTR's models learn the first label alone." in of_model.notes
    # Whichever model is chosen may learn both.
    assert [task.name for task in of_data.schema.tasks] == ["clk", "buy"]


def test_label_that_is_copied_is_that_column(folder: Path) -> None:
    path = folder / "dataset_config.yaml"
    text = path.read_text().replace("{name: clk,", "{name: clk, preprocess: copy_from(click),")
    path.write_text(text)

    assert [task.name for task in fuxictr.read(folder, "DIN_test").schema.tasks] == ["click"]


def test_source_of_a_column_is_its_side(folder: Path) -> None:
    path = folder / "dataset_config.yaml"
    text = path.read_text().replace("name: brand,", "name: brand, source: item,")
    path.write_text(text.replace("name: age,", "name: age, source: user_profile,"))
    imported = fuxictr.read(folder, "DIN_test")
    sides = {field.name: field.side for field in imported.schema.fields}

    assert (sides["brand"], sides["age"], sides["hour"]) == ("item", "context", "context")
    assert "age: source = 'user_profile' is not carried over." in imported.notes


def test_words_that_are_missing_are_told_of_csv_alone(folder: Path) -> None:
    path = folder / "dataset_config.yaml"
    for split in ("train", "valid", "test"):
        (folder / "../../data/tiny" / f"{split}.csv").rename(folder / f"{split}.parquet")
    text = path.read_text().replace("data_format: csv", "data_format: parquet")
    text = text.replace(", preprocess: convert_hour", "").replace("../data/tiny/", "")
    path.write_text(text.replace(".csv", ".parquet"))

    notes = fuxictr.read(folder, "DIN_test").notes
    assert not any(note.startswith("categories:") for note in notes)


def test_rare_categories_of_a_shared_table_are_told_only_where_they_are_cut(folder: Path) -> None:
    path = folder / "dataset_config.yaml"
    path.write_text(path.read_text().replace("min_categr_count: 2", "min_categr_count: 1"))

    notes = fuxictr.read(folder, "DIN_test").notes
    assert not any("min_categr_count" in note for note in notes)


def test_value_is_learned_in_its_own_unit(folder: Path) -> None:
    path = folder / "model_config.yaml"
    path.write_text(path.read_text().replace("task: binary_classification", "task: regression"))

    (task,) = fuxictr.read(folder, "DIN_test").schema.tasks

    assert (task.kind, task.mean, task.std) == ("regression", 0.0, 1.0)
