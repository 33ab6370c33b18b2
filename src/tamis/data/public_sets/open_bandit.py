"""Open Bandit: impressions of a fashion shop with the probability of each recommendation.

Two policies ran side by side for a week, one uniform at random and one Bernoulli Thompson
sampling, so that what is estimated from the log of one can be compared with the log of the other.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tamis.data.public_sets.files import read_parquet

ITEMS = 34
"""Items of the campaign for men."""
POSITIONS = 3
"""Places of one recommendation: left, centre and right."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OpenBanditLog:
    """n impressions of one policy, in order of time."""

    item: NDArray[np.int64]
    """(n,) recommended item, from 0."""
    position: NDArray[np.int64]
    """(n,) place, from 0 where the published file counts from 1."""
    click: NDArray[np.float64]
    """(n,) 1 for a click, else 0."""
    propensity: NDArray[np.float64]
    """(n,) probability with which the policy put this item at this place."""
    user_features: NDArray[np.str_]
    """(n, 4) hashed categories of the user."""
    affinity: NDArray[np.float64]
    """(n, ITEMS) past clicks of the user on each item."""


def open_bandit_men(folder: Path, policy: Literal["random", "bts"]) -> OpenBanditLog:
    """The log of one of the two policies.

    Args:
        folder: Folder of the published files, as Parquet.
        policy: "random" is uniform, "bts" Bernoulli Thompson sampling.

    Raises:
        DataError: The file is not there.

    Source:
        Saito, Aihara, Matsutani and Narita, Open Bandit Dataset and Pipeline, NeurIPS 2021 Datasets
        and Benchmarks; small version, campaign for men.

    Differs from the source:
        Places count from 0. Times and the features of items are left out.
    """
    table = read_parquet(folder / f"{policy}.parquet")
    features = [table[f"user_feature_{index}"].to_pylist() for index in range(4)]
    affinity = [table[f"user-item_affinity_{item}"].to_numpy() for item in range(ITEMS)]
    return OpenBanditLog(
        item=table["item_id"].to_numpy(),
        position=table["position"].to_numpy() - 1,
        click=table["click"].to_numpy().astype(np.float64),
        propensity=table["propensity_score"].to_numpy(),
        user_features=np.array(features, dtype=np.str_).T,
        affinity=np.stack(affinity, axis=1).astype(np.float64),
    )
