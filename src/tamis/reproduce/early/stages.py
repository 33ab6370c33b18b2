"""Both stages of a cascade, trained on the log that came before it, and what an ad is worth."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import nn

from tamis import api, artifacts, config
from tamis.data.ingest import ingest
from tamis.data.schema import InputSpec, Schema
from tamis.funnel.ads import AdTable
from tamis.funnel.value import ValueFunction, ValueWeights
from tamis.models import catalog
from tamis.reproduce.early.pairs import BoundPairs, PairPredictor, Predictions
from tamis.reproduce.training import train
from tamis.training.asymmetry import check_asymmetry
from tamis.training.config import run_config_from_table
from tamis.training.cost import count_parameters
from tamis.training.predict import load_trained

QUALITY_SHARE = 0.15
"""What quality is worth of the bids' value, on average."""
_RECORD = "stages.json"
_BID_SD = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Earlier:
    """The days before a cascade: both stages, and how often events are."""

    final: PairPredictor
    """The final stage."""
    early: PairPredictor
    """The early stage that wrote the log: clicks alone, from impressions."""
    rates: Mapping[str, float]
    """By task, the mean of its labels; constants of a ranker that does not predict it."""
    notes: Mapping[str, Any]
    """NE of both, of the early one for its one task, and how their sizes compare."""


def early_schema(schema: Schema) -> Schema:
    """What the early stage may see: no histories."""
    return replace(
        schema,
        fields=tuple(
            field for field in schema.fields if not field.is_jagged or field.side == "item"
        ),
    )


def train_stages(
    log: Mapping[str, Path], schema: Schema, fewer: Schema, recipes: Path, work: Path
) -> Earlier:
    """Train the final stage on all fields of a log, and a click-only early one on some.

    Args:
        log: File of each split, all of earlier days than the cascade.
        schema: Of the final stage.
        fewer: Of the early stage, which sees some of the same fields.
        recipes: Folder with ``teacher.toml`` and ``incumbent.toml``.
        work: For datasets and runs, which are kept.

    Raises:
        ConfigError: The early stage sees no less than the final one, or something else, or has
            more than half its size. Nothing is trained then.
        TamisError: A signal stopped a training.
    """
    for name, fields in (("final", schema), ("early", fewer)):
        if not api.is_dataset(work / f"dataset-{name}"):
            ingest(dict(log), work / f"dataset-{name}", schema=fields)
    check_asymmetry(
        *_untrained(work / "dataset-early", recipes / "incumbent.toml"),
        *_untrained(work / "dataset-final", recipes / "teacher.toml"),
    )
    weights = [1.0, *(0.0 for _ in schema.tasks[1:])]
    for name, recipe, settings in (
        ("final", "teacher", []),
        ("early", "incumbent", [f"training.task_weights={weights}"]),
    ):
        train(
            work / f"dataset-{name}",
            recipe=recipes / f"{recipe}.toml",
            settings=settings,
            run=work / name,
        )
    artifacts.write_json(
        work / _RECORD,
        {"rates": _rates(log["train"], schema), "notes": _notes(work, schema.tasks[0].name)},
    )
    return open_stages(work)


def open_stages(work: Path) -> Earlier:
    """What :func:`train_stages` trained in a folder."""
    record = artifacts.read_json(work / _RECORD)
    return Earlier(
        final=PairPredictor(work / "final"),
        early=PairPredictor(work / "early", head="label"),
        rates=record["rates"],
        notes=record["notes"],
    )


def draw_ads(
    bid: NDArray[np.float64], advertiser: NDArray[np.int64], conversion_rate: float
) -> AdTable:
    """Ads of which every second advertiser pays by conversion, as much per click on average."""
    by_click = advertiser % 2 == 0
    return AdTable(
        bid=np.where(by_click, bid, bid / conversion_rate),
        billing=np.where(by_click, "click", "conversion"),
        advertiser=advertiser,
        quality=np.zeros(len(bid)),
    )


def draw_bids(advertiser: NDArray[np.int64], *, seed: int) -> NDArray[np.float64]:
    """A log-normal bid for each advertiser, given to all of its ads."""
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal(int(advertiser.max()) + 1)
    bids: NDArray[np.float64] = np.exp(_BID_SD * noise)[advertiser]
    return bids


def value_weights(
    tasks: tuple[str, ...], bid: NDArray[np.float64], rates: Mapping[str, float], *, is_bad: bool
) -> ValueWeights:
    """Weights with which quality is worth :data:`QUALITY_SHARE` of the bids' value.

    Args:
        tasks: Click, conversion and quality, by name.
        bid: Money for a click.
        rates: Of the events, by task.
        is_bad: Whether the quality event costs value, as a hide does, or adds to it.
    """
    click, conversion, quality = tasks
    weight = QUALITY_SHARE * float(bid.mean()) * rates[click] / rates[quality]
    if is_bad:
        return ValueWeights(click=click, conversion=conversion, penalties={quality: weight})
    return ValueWeights(click=click, conversion=conversion, quality=quality, quality_weight=weight)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stages:
    """Both stages, bound to requests and ads, with the value that orders."""

    final: BoundPairs
    """The final stage."""
    early: BoundPairs
    """Any early stage."""
    ads: AdTable
    """By ad id."""
    value: ValueFunction
    """Of predictions and bid."""
    constants: Mapping[str, float]
    """Stand for what a stage does not predict."""

    def early_values(
        self, ad_row: NDArray[np.int64], ad: NDArray[np.int64], known: tuple[str, ...]
    ) -> NDArray[np.float64]:
        """Values (R, N) by the early stage.

        Args:
            ad_row: (R, N) candidates, as rows of the bound ads.
            ad: (R, N) their ids.
            known: Tasks whose predictions count.
        """
        rows = np.repeat(np.arange(len(ad)), ad.shape[1])
        found = self.early.predict(rows, ad_row.ravel())
        predictions = {task: found[task] for task in known}
        return self.worth(predictions, ad.ravel()).reshape(ad.shape)

    def worth(
        self, predictions: Mapping[str, NDArray[np.float64]], ad: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Total values (P,) of predictions for ads (P,)."""
        filled: Predictions = {
            task: np.full(len(ad), constant) for task, constant in self.constants.items()
        }
        return self.ads.total_value(self.value, {**filled, **predictions}, ad)


def _untrained(dataset: Path, recipe: Path) -> tuple[nn.Module, InputSpec]:
    """What a training by a recipe starts from, and its inputs."""
    settings, spec = run_config_from_table(config.read_toml(recipe)), api.open_dataset(dataset).spec
    return catalog.entry(settings.model_name).model(settings.model, spec), spec


def _rates(path: Path, schema: Schema) -> dict[str, float]:
    tasks = [task.name for task in schema.tasks]
    log = pq.read_table(path, columns=tasks)
    found = {task: log[task].cast(pa.float64()).to_numpy(zero_copy_only=False) for task in tasks}
    return {task: float(np.nanmean(values)) for task, values in found.items()}


def _notes(work: Path, click: str) -> dict[str, Any]:
    sizes = {
        name: count_parameters(load_trained(work / name).module)["dense"]
        for name in ("final", "early")
    }
    found = {
        name: artifacts.read_json(work / name / "metrics.json")["metrics"]["test"]
        for name in ("final", "early")
    }
    return {
        "dense_parameters": sizes,
        "ne": {task: metrics.get("ne") for task, metrics in found["final"].items()},
        "early_ne": {click: found["early"][click].get("ne")},
    }
