"""What tells the rows of a table apart."""

from pathlib import Path

import pytest

from tamis.reproduce.early.variants import VARIANTS, words_of
from tamis.reproduce.make import kind_of
from tamis.reproduce.row_settings import differences, settings_lines
from tamis.reproduce.tables import TABLES


def _recipes(folder: Path, **texts: str) -> dict[str, Path]:
    paths = {name: folder / f"{name}.toml" for name in texts}
    for name, text in texts.items():
        paths[name].write_text(text)
    return paths


def test_a_row_says_what_it_changes_of_the_recipe_and_what_it_leaves_at_the_default(
    tmp_path: Path,
) -> None:
    paths = _recipes(
        tmp_path,
        base='[model]\nname = "adatt"\ngate = "constant"\nnative = "unit"\n',
        same='[model]\nname = "adatt"\ngate = "constant"\nnative = "unit"\n[training]\nseed = 0\n',
        other='[model]\nname = "adatt"\nnative = "unit"\ntask_experts = [3, 2]\n'
        "[optimizer]\ndense_lr = 0.5\n",
    )

    assert differences(paths, reference="base") == {
        "other": '`model.task_experts = [3, 2]`, `model.gate = "own"`, `optimizer.dense_lr = 0.5`'
    }


def test_another_model_says_its_name_and_what_its_recipe_sets(tmp_path: Path) -> None:
    paths = _recipes(
        tmp_path,
        base='[model]\nname = "deepfm"\ndropout = 0.1\nembedding_dim = 4\n',
        other='[model]\nname = "dcn_v2"\ndropout = 0.1\nembedding_dim = 8\n',
    )

    assert differences(paths, reference="base") == {
        "other": '`model.name = "dcn_v2"`, `model.embedding_dim = 8`'
    }


def test_members_are_told_by_their_names_and_tables_as_toml_writes_them(tmp_path: Path) -> None:
    member = '[[model.members]]\nname = "{}"\n'
    cetnet = '[model]\nname = "cetnet"\n' + member.format("dcn_v2")
    level = "[[model.levels]]\nuser_tokens = {}\n"
    hsnn = '[model]\nname = "hsnn"\ncodebooks = [4]\n' + level.format(2)
    ensembles = _recipes(
        tmp_path, base=cetnet + member.format("lr"), twins=cetnet + member.format("dcn_v2")
    )
    indexes = _recipes(tmp_path, one=hsnn + level.format(2), two=hsnn + level.format(3))

    assert differences(ensembles, reference="base") == {
        "twins": "`model.members = [dcn_v2, dcn_v2]`"
    }
    (words,) = differences(indexes, reference="one").values()
    assert words.startswith("`model.levels = [{ user_tokens = 2, user_dim = 16")
    assert "{ user_tokens = 3" in words


def test_lines_are_a_table_or_nothing() -> None:
    assert settings_lines({}, head="what it is") == []
    assert settings_lines({"a": "one"}, head="what it is") == [
        "| row | what it is |",
        "|---|---|",
        "| a | one |",
        "",
    ]


@pytest.mark.parametrize(
    "name", [name for name, table in TABLES.items() if getattr(table, "varied", "")]
)
def test_every_variant_of_a_studied_model_changes_something(name: str) -> None:
    table = TABLES[name]

    told = kind_of(table).settings(Path("recipes") / name)

    assert set(told) == {*table.models} - {table.varied}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["hsnn-market", "hsnn-sports", "hsnn-gowalla"])
def test_variants_of_an_index_say_what_they_remove(name: str) -> None:
    told = kind_of(TABLES[name]).settings(Path("recipes") / name)

    assert told["hsnn-2-sil"].startswith('`model.index_learning = "sil"`')
    assert "balance_weight = 0.0" in told["hsnn-2-no-balance"]


def test_rows_of_early_stages_are_told_in_words() -> None:
    told = {name: words_of(variant) for name, variant in VARIANTS.items()}

    assert told["full"] == (
        "clicks, conversions and quality; labels, and the final stage's predictions by heads of "
        "their own; rows that were shown, scored or turned away before (I to III)"
    )
    assert told["click"] == (
        "as full, but: clicks alone; labels alone; rows that were shown (pool I)"
    )
    assert told["k=0.3"].endswith("weight 0.3 of each distillation loss")
    assert told["no chain"].endswith("`model.chain=false`")
    assert len(set(told.values())) == len(told)
