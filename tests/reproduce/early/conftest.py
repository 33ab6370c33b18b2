"""A cascade of a few hundred requests whose every chance is known."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tamis import config
from tamis.data.schema import Field, Roles, Schema, Task
from tamis.funnel.ads import AdTable
from tamis.funnel.value import ValueFunction, ValueWeights
from tamis.reproduce.early.boosted import BoostedConfig
from tamis.reproduce.early.cascade import all_rows, log_of, pass_cascade, sampled_rows
from tamis.reproduce.early.study import Part, Study, write_study
from tamis.reproduce.early.variants import CascadeSizes

TASKS = ("click", "conversion", "hide")
NUM_ADS, NUM_USERS = 30, 25
SIZES = CascadeSizes(
    keep=8,
    slots=3,
    train_requests=300,
    test_requests=60,
    scored_per_request=4,
    rejected_per_request=6,
)
TREES = BoostedConfig(
    rounds=300, num_leaves=63, learning_rate=0.05, min_data_in_leaf=50, feature_fraction=0.8
)
RECIPE = """
[model]
name = "early_stage"
embedding_dim = 4
tower_units = [8]
tower_dim = 8
bottom_units = [16, 8]
expert_units = [[16, 8]]
head_units = [8]

[training]
batch_size = 256
max_epochs = 2
patience = 2
precision = "float32"
"""


@pytest.fixture(scope="session")
def early_schema_of_ads() -> Schema:
    return Schema(
        fields=(
            Field(name="user", kind="categorical", side="user"),
            Field(name="ad", kind="categorical", side="item"),
            Field(name="words", kind="sequence", side="item", max_length=3),
            Field(name="hour", kind="numeric", side="context"),
        ),
        tasks=(
            Task(name="click"),
            Task(name="conversion", observed_when="click"),
            Task(name="hide"),
        ),
        roles=Roles(user="user"),
    )


class TinyWorld:
    """Users and ads with a chance for everything."""

    def __init__(self) -> None:
        generator = np.random.default_rng(5)
        self.logits = {
            task: base + generator.standard_normal((NUM_USERS, NUM_ADS))
            for task, base in (("click", -1.0), ("conversion", -0.5), ("hide", -2.0))
        }
        self.ads = AdTable(
            bid=np.exp(0.3 * generator.standard_normal(NUM_ADS)),
            billing=np.where(np.arange(NUM_ADS) % 2 == 0, "click", "conversion"),
            advertiser=np.arange(NUM_ADS),
            quality=np.zeros(NUM_ADS),
        )
        self.weights = ValueWeights(penalties={"hide": 1.5})
        self.value = ValueFunction(self.weights)

    def part(self, first: int, count: int, *, tells_all: bool) -> Part:
        """Requests numbered from ``first``, all of whose candidates are all ads."""
        generator = np.random.default_rng(first)
        request = np.arange(first, first + count)
        user = generator.integers(0, NUM_USERS, count)

        def final(rows: np.ndarray, places: np.ndarray) -> dict[str, np.ndarray]:
            return {
                task: 1 / (1 + np.exp(-logit[user[rows], places]))
                for task, logit in self.logits.items()
            }

        early = generator.standard_normal((count, NUM_ADS)) + self.logits["click"][user]
        outcome = pass_cascade(
            early,
            final,
            lambda found, _, places: self.ads.total_value(self.value, found, places),
            SIZES,
            generator,
        )
        rows = (
            all_rows(outcome, final)
            if tells_all
            else sampled_rows(outcome, final, SIZES, seed=first)
        )
        chances = final(rows.row, rows.place)
        happens = {task: generator.random(len(rows.row)) < p for task, p in chances.items()}
        labels = {task: values.astype(np.float32) for task, values in happens.items()}
        labels["conversion"][~happens["click"]] = np.nan
        words = [[f"w{ad % 4}", f"w{ad % 3}"] for ad in rows.place]
        return Part(
            log=log_of(rows, request=request[rows.row], candidate=rows.place, labels=labels),
            inputs=pa.table(
                {
                    "user": user[rows.row],
                    "ad": rows.place,
                    "words": pa.array(words),
                    "hour": (request[rows.row] % 24).astype(np.float64),
                }
            ),
            truth=chances,
            incumbent=early[rows.row, rows.place],
        )


@pytest.fixture(scope="session")
def world() -> TinyWorld:
    return TinyWorld()


@pytest.fixture(scope="session")
def parts(world: TinyWorld) -> tuple[list[Part], list[Part]]:
    """What trains and what judges."""
    train = [world.part(first, 100, tells_all=False) for first in (0, 100, 200)]
    return train, [world.part(1000, 60, tells_all=True)]


@pytest.fixture(scope="session")
def study(
    world: TinyWorld,
    parts: tuple[list[Part], list[Part]],
    early_schema_of_ads: Schema,
    tmp_path_factory: pytest.TempPathFactory,
) -> Study:
    folder = tmp_path_factory.mktemp("cascade") / "study"
    write_study(
        folder,
        train=parts[0],
        test=parts[1],
        schema=early_schema_of_ads,
        ads=world.ads,
        value=world.weights,
        constants={"click": 0.3, "conversion": 0.4, "hide": 0.1},
        sizes=SIZES,
        notes={"simulated_labels": 0.25, "dense_parameters": {"final": 100_000}},
    )
    return Study(folder)


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe for each kind of row."""
    folder = tmp_path_factory.mktemp("recipes")
    for name, text in (
        ("early_stage", RECIPE),
        ("labels_alone", RECIPE),
        ("one_model_each", RECIPE),
        ("lightgbm", config.write_toml(config.to_table(TREES))),
        ("lightgbm_parts", config.write_toml(config.to_table(TREES))),
    ):
        (folder / f"{name}.toml").write_text(text)
    return folder


@pytest.fixture(scope="session")
def recipe(recipes: Path) -> Path:
    return recipes / "early_stage.toml"
