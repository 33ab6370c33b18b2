"""LightGBM distilled on the final stage's predictions: the rival to fear on tabular inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis import api, config
from tamis.data.dataset import Dataset
from tamis.data.loader import Loader
from tamis.errors import ConfigError
from tamis.funnel.value import BILLING
from tamis.reproduce.early.calibration import ValidationRows
from tamis.reproduce.early.study import Study
from tamis.reproduce.early.variants import Boosted, Pools

_SETTINGS: dict[str, Any] = {"num_threads": 1, "deterministic": True, "verbosity": -1}
_GRADES = 31
"""Grades of value within a request that lambdarank tells apart."""
_POOLS: Pools = "rejected"
_ROWS_AT_A_TIME = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class BoostedConfig:
    """How trees grow; names are LightGBM's."""

    rounds: int
    """Trees of each model."""
    num_leaves: int
    """Of a tree."""
    learning_rate: float
    """Share of each tree's step."""
    min_data_in_leaf: int
    """Rows of a leaf at least."""
    feature_fraction: float
    """Share of the columns that a tree sees."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BoostedScores:
    """What trees say of the judged candidates."""

    score: NDArray[np.float64]
    """(N,) a total value, but for lambdarank, whose order alone means something."""
    trees: int
    """Of all models."""
    models: int
    """Trained."""


class TreeFit:
    """Trainings on one set of rows."""

    def __init__(
        self,
        inputs: NDArray[np.float32],
        categories: list[int],
        weights: NDArray[np.float32],
        settings: BoostedConfig,
        seed: int,
    ) -> None:
        """Take the rows.

        Raises:
            ConfigError: LightGBM is not installed.
        """
        try:
            import lightgbm
        except ImportError as error:
            raise ConfigError(
                "lightgbm: must be installed for this row, got no such package. Run pip install "
                "'.[lightgbm]' in the checkout of tamis."
            ) from error
        self._lightgbm: Any = lightgbm
        self._inputs, self._categories = inputs, categories
        self._weights = weights
        self._settings = {**_SETTINGS, **config.to_table(settings), "seed": seed}
        self.boosters: list[Any] = []

    def trained(
        self, objective: str, target: NDArray[Any], judged: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Predictions of a model of targets (n,) for the judged rows."""
        return self._scores(objective, np.arange(len(target)), target, judged)

    def ranked(
        self,
        value: NDArray[np.float64],
        request: NDArray[np.int64],
        judged: NDArray[np.float32],
    ) -> NDArray[np.float64]:
        """Scores of lambdarank, whose gain is a candidate's grade of value in its request."""
        order = np.lexsort((-value, request))
        _, starts, counts = np.unique(request[order], return_index=True, return_counts=True)
        place = np.arange(len(order)) - np.repeat(starts, counts)
        grade = np.maximum(0, _GRADES - place)
        gains = list(range(_GRADES + 1))
        return self._scores("lambdarank", order, grade, judged, group=counts, label_gain=gains)

    def _scores(
        self,
        objective: str,
        rows: NDArray[np.int64],
        target: NDArray[Any],
        judged: NDArray[np.float32],
        *,
        group: NDArray[np.int64] | None = None,
        **settings: Any,  # noqa: ANN401  (of the library)
    ) -> NDArray[np.float64]:
        data = self._lightgbm.Dataset(
            self._inputs[rows],
            target,
            weight=self._weights[rows],
            group=group,
            categorical_feature=self._categories,
        )
        chosen = {**self._settings, **settings, "objective": objective}
        booster = self._lightgbm.train(chosen, data, num_boost_round=chosen.pop("rounds"))
        self.boosters.append(booster)
        return self.predict(booster, judged)

    @staticmethod
    def predict(booster: Any, inputs: NDArray[np.float32]) -> NDArray[np.float64]:  # noqa: ANN401
        """Predictions (n,) by one thread."""
        return np.asarray(booster.predict(inputs, num_threads=1), np.float64)


def boosted_scores(
    study: Study, variant: Boosted, settings: BoostedConfig, *, seed: int
) -> BoostedScores:
    """Train on the rows of all pools and score the judged candidates.

    Trees that learn a total value, or its order, also see the bid and how it is billed: the value
    function, which applies both exactly everywhere else, has no part in what they say.

    Args:
        study: The cascade.
        variant: What is learned.
        settings: How trees grow.
        seed: Of the draws of features.

    Raises:
        ConfigError: LightGBM is not installed.
    """
    dataset = api.open_dataset(study.dataset(_POOLS))
    inputs, categories = tree_inputs(dataset, "train")
    judged, _ = tree_inputs(dataset, "test")
    log = study.log(_POOLS, "train")
    bids, billings = study.ads()
    bid, billing = bids[log.candidate], billings[log.candidate]
    if variant.objective != "parts":
        of_judged = study.judged()
        categories = [*categories, inputs.shape[1] + 1]
        inputs = with_bids(inputs, bid, billing)
        judged = with_bids(judged, of_judged.bid, of_judged.billing)
    fit = TreeFit(inputs, categories, log.weights(cap=study.sizes.weight_cap), settings, seed)
    if variant.objective == "parts":
        score = _value_of_parts(study, fit, log.final, judged)
    else:
        value = study.value.score(log.final, bid, billing)
        score = (
            fit.trained("regression", value, judged)
            if variant.objective == "value"
            else fit.ranked(value, log.request, judged)
        )
    return BoostedScores(
        score=score,
        trees=sum(booster.num_trees() for booster in fit.boosters),
        models=len(fit.boosters),
    )


def _value_of_parts(
    study: Study,
    fit: TreeFit,
    final: Mapping[str, NDArray[np.float32]],
    judged: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Total values of a model for each task, calibrated on the rows that calibrate our heads."""
    valid, _ = tree_inputs(api.open_dataset(study.dataset(_POOLS)), "valid")
    target, candidates = study.log(_POOLS, "valid").final, study.judged()
    rows = ValidationRows(study, _POOLS)
    predictions = {}
    for task in study.tasks:
        values = fit.trained("cross_entropy", final[task], judged)
        calibrator = rows.fit(target[task], fit.predict(fit.boosters[-1], valid))
        if calibrator is not None:
            values = calibrator.apply(values, candidates.billing)
        predictions[task] = values
    return study.values(predictions, candidates)


def tree_inputs(dataset: Dataset, split: str) -> tuple[NDArray[np.float32], list[int]]:
    """The early stage's inputs (n, C) as one matrix, and which columns are categories.

    Of a list each category counts in a column of its own.
    """
    spec = dataset.spec
    sizes = {table.name: table.num_rows for table in spec.tables}
    loader = Loader(dataset.split(split), spec, batch_size=_ROWS_AT_A_TIME, shuffle=False)
    parts = []
    for batch in loader.epoch(0):
        columns = [batch.ids.numpy(), batch.numeric.numpy()]
        for group in spec.sequences:
            lists = batch.sequences[group.name]
            owner = np.repeat(np.arange(batch.num_rows), lists.offsets.diff().numpy())
            for at, table in enumerate(group.tables):
                counts = np.zeros((batch.num_rows, sizes[table]), np.float32)
                np.add.at(counts, (owner, lists.values[:, at].numpy()), 1.0)
                columns.append(counts)
        parts.append(np.concatenate(columns, axis=1, dtype=np.float32))
    return np.concatenate(parts), list(range(len(spec.categorical)))


def with_bids(
    inputs: NDArray[np.float32], bid: NDArray[np.float64], billing: NDArray[np.str_]
) -> NDArray[np.float32]:
    """Inputs (n, C) and two columns more: the logarithm of the bid, and the billed event's code."""
    code = np.searchsorted(BILLING, billing)
    return np.column_stack([inputs, np.log(bid), code]).astype(np.float32)
