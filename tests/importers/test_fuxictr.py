"""Folders of FuxiCTR's configs, and experiments in them."""

from pathlib import Path

import pytest

from tamis.errors import ConfigError
from tamis.importers import fuxictr


def test_data_set_alone_has_no_recipe(folder: Path) -> None:
    imported = fuxictr.read(folder, "tiny_seq")

    assert imported.recipe is None
    assert {field.group for field in imported.schema.fields if field.is_jagged} == {""}


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "dataset_config.yaml",
            "max_len: 20",
            "max_len: ten",
            r"dataset_config\.yaml: column 'click_sequence': max_len: must be a number, got 'ten'",
        ),
        (
            "model_config.yaml",
            "epochs: 40",
            "epochs: many",
            r"model_config\.yaml: DIN_test: epochs: must be a number, got 'many'",
        ),
    ],
)
def test_wrong_number_names_its_file_and_entry(
    folder: Path, file: str, old: str, new: str, message: str
) -> None:
    text = (folder / file).read_text()
    (folder / file).write_text(text.replace(old, new))

    with pytest.raises(ConfigError, match=message):
        fuxictr.read(folder, "DIN_test")


@pytest.mark.parametrize(
    ("experiment", "old", "new", "message"),
    [
        ("DNN_test", "", "", r"must hold the experiment, got 'DNN_test'. It holds .*DIN_test"),
        ("npz", "", "", "must be raw csv or parquet, got 'npz'"),
        ("DIN_test", "model: DIN\n", "model: AFM\n", r"model: must be one of .*DCNv2.*got 'AFM'"),
        ("DIN_test", "dataset_id: tiny_seq", "dataset_id: x", "must hold the data set 'x'"),
        ("DCNv2_test", "parallel\n", "crossnet_only\n", "must be parallel or stacked"),
        ("DIN_test", "Base:", "Base: [", "must be YAML"),
        ("DIN_test", "Base:", "Base: 3\nOther:", "Base: must hold named entries, got 3"),
        ("DIN_test", "embedding_dim: 10", "embedding_dim: x", "embedding_dim: must be a number"),
        ("DIN_test", "dataset_id: tiny_seq", "dataset_id: [x]", r"must hold the data set \['x'\]"),
    ],
)
def test_what_cannot_be_imported_is_refused(
    folder: Path, experiment: str, old: str, new: str, message: str
) -> None:
    path = folder / "model_config.yaml"
    path.write_text(path.read_text().replace(old, new) if old else path.read_text())

    with pytest.raises(ConfigError, match=message):
        fuxictr.read(folder, experiment)


def test_configs_may_be_folders_of_files(folder: Path) -> None:
    wanted = fuxictr.read(folder, "DeepFM_test")
    data_sets, models = folder / "dataset_config.yaml", folder / "model_config.yaml"
    text = models.read_text()
    for kind in ("dataset_config", "model_config"):
        (folder / kind).mkdir()
    data_sets.rename(folder / "dataset_config" / "tiny.yaml")
    models.rename(folder / "model_config" / "second.yaml")
    (folder / "model_config" / "first.yaml").write_text(
        "Base: {group_id: nobody}\nother: {model: LR}\n"
    )

    assert fuxictr.read(folder, "DeepFM_test") == wanted  # with the Base of its own file
    (folder / "model_config" / "second.yaml").write_text(text[text.index("DIN_test:") :])
    assert fuxictr.read(folder, "DeepFM_test").schema.roles.user == "nobody"
    with pytest.raises(
        ConfigError, match=r"got 'x'. It holds .*DeepFM_test.* npz, other, tiny_seq"
    ):
        fuxictr.read(folder, "x")
