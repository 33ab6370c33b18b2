"""A request as the funnel sees it, and what a log says was shown in answer to it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tamis.data.batch import Batch
from tamis.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Impressions:
    """Ads that a log says were shown, and what came of them."""

    ads: NDArray[np.int64]
    """(n,) ad rows."""
    labels: Mapping[str, NDArray[np.float32]]
    """(n,) by task; NaN where not observed."""
    features: Batch | None = None
    """n rows: the encoded fields of user and context of each impression, such as the position at
    which it was shown. None: all are as the request's."""

    def __post_init__(self) -> None:
        for task, labels in self.labels.items():
            if labels.shape != self.ads.shape:
                raise DataError(
                    f"labels of {task!r}: must be one for each of {len(self.ads)} ads shown, got "
                    f"shape {labels.shape}. Use NaN where a label was not observed."
                )
        if self.features is not None and self.features.num_rows != len(self.ads):
            raise DataError(
                f"impressions: features must be one row for each of {len(self.ads)} ads shown, got "
                f"{self.features.num_rows}. Pass the rows of the log, or None."
            )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Request:
    """One visit that asks for ads."""

    request_id: int
    """Number of the request; it also decides ties between equal scores. At least 0."""
    user: int
    """Number of the user, by which caches know users. Below 0 of one who is not known, such as
    ``~request_id``: a log's codes of users are at least 0."""
    time_micros: int
    """When it was asked, in microseconds since 1970 UTC."""
    slots: int
    """Ads that are asked for. At least 1."""
    features: Batch | None = None
    """One row: the encoded fields of user and context. Its item fields are not read. None where no
    stage reads features."""
    candidates: NDArray[np.int64] | None = None
    """(n,) ad rows that the funnel starts from, as a log has them: in any order, repeats allowed.
    None: all ads."""
    shown: Impressions | None = None
    """What was shown in the log; read by replay alone, never by a stage."""

    def __post_init__(self) -> None:
        if self.request_id < 0 or self.slots < 1:
            raise DataError(
                f"request: request_id must be at least 0 and slots at least 1, got request_id="
                f"{self.request_id}, slots={self.slots}. Correct the request."
            )
        if self.features is not None and self.features.num_rows != 1:
            raise DataError(
                f"request {self.request_id}: features must be one row, got "
                f"{self.features.num_rows}. Pass the row of this request alone."
            )
