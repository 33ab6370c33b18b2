"""Tables on public sets that users fetch, on small files in reczoo's layout."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tamis import artifacts
from tamis.data.dataset import Dataset
from tamis.errors import DataError
from tamis.models import catalog
from tamis.reproduce import make
from tamis.reproduce.kinds import table_dataset
from tamis.reproduce.make import make_table
from tamis.reproduce.originals import original_tables
from tamis.reproduce.tables import GROUPS, TABLES
from tamis.training.config import read_run_config

_RECIPES = Path(__file__).parents[2] / "recipes"
_TABLES = {table.name: table for table in original_tables()}
_ROWS = 200
_AVAZU = (
    *("C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain"),
    *("app_category", "device_id", "device_ip", "device_model", "device_type"),
    *("device_conn_type", *(f"C{number}" for number in range(14, 22))),
)
_TAOBAO = (
    *("userid", "cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level"),
    *("shopping_level", "occupation", "new_user_class_level", "adgroup_id", "cate_id"),
    *("campaign_id", "customer", "brand", "pid", "btag"),
)


def _small(*names: str, values: int = 4) -> dict[str, list[Any]]:
    return {name: [row % values for row in range(_ROWS)] for name in names}


def _histories(*names: str) -> dict[str, list[Any]]:
    return {
        name: ["^".join(str(n % 4) for n in range(row % 5)) for row in range(_ROWS)]
        for name in names
    }


def _columns() -> dict[str, dict[str, list[Any]]]:
    """Columns of each set, by the name of reczoo's folder."""
    criteo = [f"I{n}" for n in range(1, 14)] + [f"C{n}" for n in range(1, 27)]
    return {
        "Criteo_x1": _small("label", values=2) | _small(*criteo),
        "Criteo_x4": _small("Label", values=2) | _small(*criteo),
        "Avazu_x1": _small("label", values=2) | _small(*(f"feat_{n}" for n in range(1, 23))),
        "Avazu_x4": {
            **_small("id", values=_ROWS),
            **_small("click", values=2),
            "hour": [14102100 + row % 24 for row in range(_ROWS)],
            **_small(*_AVAZU),
        },
        "AmazonElectronics_x1": {
            # Two rows of each user, of which one has the label.
            "label": [(row + row // 100) % 2 for row in range(_ROWS)],
            **_small("user_id", values=100),
            **_small("item_id", "cate_id"),
            **_histories("item_history", "cate_history"),
        },
        "TaobaoAd_x1": {
            **_small("clk", values=2),
            **_small("price"),
            **_small(*_TAOBAO),
            **_histories("cate_his", "brand_his", "btag_his"),
        },
        "KuaiVideo_x1": {
            **_small("timestamp", values=_ROWS),
            **_small("is_click", "is_like", "is_follow", values=2),
            **_small("user_id", "item_id"),
            **_histories("pos_items", "neg_items"),
        },
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of public sets, each in a folder of reczoo's name."""
    root = tmp_path_factory.mktemp("sets")
    for name, columns in _columns().items():
        has_valid = name.startswith(("Criteo", "Avazu"))
        (root / name).mkdir()
        for split in ("train", "valid", "test") if has_valid else ("train", "test"):
            with (root / name / f"{split}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows(zip(*columns.values(), strict=True))
    with h5py.File(root / "KuaiVideo_x1" / "item_visual_emb_dim64.h5", "w") as file:
        items = sorted(set(_columns()["KuaiVideo_x1"]["item_id"]))
        file["key"], file["value"] = items, np.ones((len(items), 64))
    return root


def _make(name: str, *, data: Path | None, recipes: Path, folder: Path) -> make.MadeTable:
    return make_table(
        name,
        data=data,
        recipes=recipes,
        work=folder / "work",
        out=folder / "results",
        workers=2,
        progress=lambda done, total: None,
    )


@pytest.mark.parametrize("name", _TABLES)
def test_recipes_fit_the_set_of_their_table(name: str, data: Path, tmp_path: Path) -> None:
    table = _TABLES[name]
    spec = Dataset.open(table_dataset(table, data, tmp_path)).spec
    assert tuple(task.name for task in spec.tasks) == table.tasks

    for model in table.models:
        path = _RECIPES / (table.recipes or name) / f"{model}.toml"
        recipe = read_run_config(path)
        assert path.read_text().startswith("# "), "where its settings are from"
        with torch.device("meta"):
            catalog.entry(recipe.model_name).model(recipe.model, spec)


@pytest.mark.parametrize("name", _TABLES)
def test_a_set_that_nobody_fetched_is_named(name: str, tmp_path: Path) -> None:
    files = r"(train\.csv|item_visual_emb_dim64\.h5)"
    message = rf"_x\d/{files}: must exist, got no such file\. Fetch the set from reczoo"
    with pytest.raises(DataError, match=message):
        _make(name, data=tmp_path, recipes=_RECIPES, folder=tmp_path)
    with pytest.raises(DataError, match=r"needs the public set .* Set TAMIS_DATA or --data"):
        _make(name, data=None, recipes=_RECIPES, folder=tmp_path)


def test_one_name_makes_the_papers_table_of_all_three_sets() -> None:
    sets = ("amazon", "taobao", "kuai")
    for group in ("interformer-table3", "interformer-held-out"):
        assert GROUPS[group] == tuple(f"{group}-{name}" for name in sets)
    assert set(_TABLES) <= set(TABLES)


def test_figures_are_those_of_the_paper_and_of_bars() -> None:
    (paper, bars) = (
        figure for figure in _TABLES["interformer-table3-kuai"].published if figure.model == "dien"
    )

    assert (paper.auc, paper.gauc, paper.log_loss) == (0.7451, 0.6651, 0.4343)
    assert (bars.auc, bars.gauc, bars.log_loss) == (0.750372, 0.671148, 0.433049)
    for figure in (paper, bars):
        assert figure.protocol.endswith("epochs chosen on the test split")
    # Held-out rows make another protocol: no figure of others stands beside it.
    assert not _TABLES["interformer-held-out-kuai"].published
    runs = {figure.model: figure.protocol for figure in _TABLES["avazu_x1"].published}
    assert runs["dcn_v2"] == "BARS, Avazu_x1, 5 runs"
    assert runs["lr"] == "BARS, Avazu_x1, 1 run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "chosen_on"),
    [("interformer-table3-amazon", "test"), ("interformer-held-out-amazon", "validation")],
)
def test_a_table_is_made_of_fetched_files(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chosen_on: str
) -> None:
    table = _TABLES[name]
    small = replace(
        table,
        models=("interformer",),
        seeds=2,
        comparisons=(),
        published=tuple(one for one in table.published if one.model == "interformer"),
    )
    monkeypatch.setattr(make, "TABLES", {name: small})
    # Recipes stand in the folder of the paper's table; the other one has no folder.
    recipes = tmp_path / "recipes" / "interformer-table3-amazon"
    recipes.mkdir(parents=True)
    (recipes / "interformer.toml").write_text(
        '[model]\nname = "interformer"\nembedding_dim = 4\nnum_layers = 1\nnum_heads = 1\n'
        "head_units = [8]\ndot_units = 4\n"
        '[training]\nmax_epochs = 1\nbatch_size = 50\nmonitor = "auc"\n'
    )

    made = _make(name, data=data, recipes=recipes.parent, folder=tmp_path)

    payload = artifacts.read_json(made.path)
    assert payload["complete"]
    assert [(row["model"], row["seed"]) for row in payload["rows"]] == [
        *(("interformer", 0), ("interformer", 1))
    ]
    assert list(payload["data"]) == [table.dataset]
    page = made.path.with_suffix(".md").read_text()
    assert f"weights chosen on the {chosen_on} split" in page
    if chosen_on == "test":
        assert made.columns[:3] == ["model", "AUC", "publ."]
        assert made.display_rows[0][2] == "0.8865"
        assert payload["published"][0]["gauc"] == 0.8843
