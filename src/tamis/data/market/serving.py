"""What a policy from outside is told about an hour of the market, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tamis.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LiveRequests:
    """n requests of one hour and the A ads that are alive in it: all that may be known then."""

    hour: int
    """Hours since the start of the market."""
    slots: int
    """Ads that each request asks for."""
    request_id: NDArray[np.int64]
    """(n,) numbers, rising."""
    user: NDArray[np.int32]
    """(n,) who asks."""
    time_micros: NDArray[np.int64]
    """(n,) when, in microseconds since 1970 UTC."""
    features: pa.Table
    """n rows: the log's columns of request, user and context, as an impression at the first
    position will show them."""
    ad: NDArray[np.int32]
    """(A,) ads, rising."""
    ad_features: pa.Table
    """A rows: the log's columns of each ad."""

    def __len__(self) -> int:
        return len(self.request_id)

    def take(self, rows: NDArray[np.int64]) -> "LiveRequests":
        """Some of the requests, by place; the ads stay."""
        return LiveRequests(
            hour=self.hour,
            slots=self.slots,
            request_id=self.request_id[rows],
            user=self.user[rows],
            time_micros=self.time_micros[rows],
            features=self.features.take(pa.array(rows)),
            ad=self.ad,
            ad_features=self.ad_features,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CandidateScores:
    """m pairs of request and ad that S stages chose from: those of some requests, each whole.

    Whoever gives them gives every ad that was open to a request, not those alone that a stage let
    through: what a stage lost shows in no others.
    """

    stages: tuple[str, ...]
    """Names of the stages, first to last; what survived them all was shown."""
    request: NDArray[np.int64]
    """(m,) place of the request among those of the hour."""
    ad: NDArray[np.int32]
    """(m,) ads, each once in a request."""
    survived: NDArray[np.int8]
    """(m,) how many stages kept the candidate, from 0 to S."""
    scores: NDArray[np.float32]
    """(m, S) of each stage; NaN where it gave none."""
    predictions: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """(m,) by task, as the last stage went on with them; NaN for what did not come so far."""

    def __post_init__(self) -> None:
        shape = self.request.shape
        columns: dict[str, NDArray[Any]] = {
            "ad": self.ad,
            "survived": self.survived,
            **self.predictions,
        }
        for name, values in columns.items():
            if values.shape != shape:
                raise DataError(
                    f"CandidateScores.{name}: must have a row for each of {len(self.request)} "
                    f"candidates, got shape {values.shape}. Give every candidate one value."
                )
        stages = len(self.stages)
        if not stages or self.scores.shape != (len(self.request), stages):
            raise DataError(
                f"CandidateScores.scores: must have a row for each of {len(self.request)} "
                f"candidates and a column for each of the stages "
                f"{self.stages!r}, at least one, got shape {self.scores.shape}. Use NaN where a "
                f"stage gave no score."
            )
        if self.survived.size and not (0 <= self.survived.min() <= self.survived.max() <= stages):
            raise DataError(
                f"CandidateScores.survived: must lie in 0 to {stages}, the number of stages, got "
                f"{self.survived.min()} to {self.survived.max()}. Count the stages that kept it."
            )

    def take(self, rows: NDArray[Any]) -> "CandidateScores":
        """Some of the candidates, by a mask (m,) or by their places."""
        return CandidateScores(
            stages=self.stages,
            request=self.request[rows],
            ad=self.ad[rows],
            survived=self.survived[rows],
            scores=self.scores[rows],
            predictions={task: values[rows] for task, values in self.predictions.items()},
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Slates:
    """Answers to n requests."""

    ads: NDArray[np.int32]
    """(n, slots) ads by position; -1 where a place is left empty, which the first ones are not
    before the last ones."""
    prices: NDArray[np.float64] | None = None
    """(n, slots) money for a click, NaN where it is not set; read where there is an ad. None: the
    policy sets none."""
    propensities: NDArray[np.float64] | None = None
    """(n, slots) chance that the policy shows this ad here, NaN where it is not known; read where
    there is an ad. None: the policy knows none."""
    candidates: tuple[CandidateScores, ...] = ()
    """What the ads were chosen from, by funnel that chose; no request stands in two of them. Empty:
    not told, and the market judges some requests itself; a part without rows: told of none."""

    def check(self, requests: LiveRequests) -> None:
        """Refuse answers that the market cannot show.

        Raises:
            DataError: A shape is not that of the requests, an ad is not alive or stands twice in a
                slate, a place is empty before one that is not, or a number has no meaning.
        """
        self._check_shapes(requests)
        is_shown = self.ads >= 0
        self._check_alive(requests, self.ads, is_shown, "slate")
        ordered = np.sort(self.ads, axis=1)
        twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
        if twice.any():
            at = int(np.argmax(twice))
            raise DataError(
                f"request {requests.request_id[at]}: an ad must stand once in a slate, got "
                f"{self.ads[at].tolist()}. Show another, or leave the place empty (-1)."
            )
        gap = (is_shown[:, 1:] & ~is_shown[:, :-1]).any(axis=1)
        if gap.any():
            at = int(np.argmax(gap))
            raise DataError(
                f"request {requests.request_id[at]}: empty places must be the last of a slate, got "
                f"{self.ads[at].tolist()}. Move the ads up."
            )
        self._check_numbers(requests, is_shown)
        self._check_candidates(requests)

    def _check_shapes(self, requests: LiveRequests) -> None:
        wanted = (len(requests), requests.slots)
        for name in ("ads", "prices", "propensities"):
            values = getattr(self, name)
            if values is not None and values.shape != wanted:
                raise DataError(
                    f"Slates.{name}: must be of shape {wanted}, requests by places, got "
                    f"{values.shape}. Answer every request of the hour."
                )
        if self.ads.dtype.kind != "i":
            raise DataError(
                f"Slates.ads: must be signed whole numbers, got {self.ads.dtype}. Pass the ad_id "
                f"of each ad, and -1 for an empty place."
            )

    def _check_alive(
        self, requests: LiveRequests, ads: NDArray[Any], asked: NDArray[np.bool_], what: str
    ) -> None:
        dead = asked & ~np.isin(ads, requests.ad)
        # Below 0 only -1 has a meaning.
        dead |= ads < -1
        if dead.any():
            wrong = ads[dead].flat[0].item()
            raise DataError(
                f"{what} of hour {requests.hour}: ads must be alive, got ad {wrong} "
                f"({np.count_nonzero(dead)} such places). Choose from the ads of the hour."
            )

    def _check_numbers(self, requests: LiveRequests, is_shown: NDArray[np.bool_]) -> None:
        for name, must, column, most in (
            ("prices", "finite and not negative", self.prices, np.finfo(np.float64).max),
            ("propensities", "in (0, 1]", self.propensities, 1.0),
        ):
            if column is None:
                continue
            # NaN is in no comparison, so that what is not known passes.
            broken = is_shown & ((column < 0) | (column > most))
            if name == "propensities":
                broken |= is_shown & (column == 0)
            if broken.any():
                raise DataError(
                    f"Slates.{name} of hour {requests.hour}: must be {must}, got "
                    f"{column[broken][0].item()!r} ({np.count_nonzero(broken)} such places). Check "
                    f"the policy."
                )

    def _check_candidates(self, requests: LiveRequests) -> None:
        places = np.zeros(len(requests), np.int64)
        for part in self.candidates:
            if len(part.request) and not (
                part.request.min() >= 0 and part.request.max() < len(requests)
            ):
                raise DataError(
                    f"candidates of hour {requests.hour}: request must be a place from 0 to "
                    f"{len(requests) - 1}, got {part.request.min()} to {part.request.max()}."
                )
            self._check_alive(requests, part.ad, np.ones(part.ad.shape, np.bool_), "candidates")
            places[np.unique(part.request)] += 1
            pair = part.request * (int(requests.ad[-1]) + 1) + part.ad
            if len(np.unique(pair)) < len(pair):
                raise DataError(
                    f"candidates of hour {requests.hour}: an ad must stand once in a request, got "
                    f"{len(pair) - len(np.unique(pair))} repeats. Keep one row of each."
                )
            self._check_survivors(requests, part)
        if (places > 1).any():
            raise DataError(
                f"candidates of hour {requests.hour}: a request must stand in one part, got "
                f"{requests.request_id[int(np.argmax(places > 1))]} in several. One funnel answers "
                f"a request."
            )

    def _check_survivors(self, requests: LiveRequests, part: CandidateScores) -> None:
        """What came through is what is shown: else the regret would be of another slate."""
        survivors = part.survived == len(part.stages)
        is_shown = (self.ads[part.request] == part.ad[:, None]).any(axis=1)
        judged = np.unique(part.request)
        shown = np.count_nonzero(self.ads >= 0, axis=1)
        counts = np.bincount(part.request[survivors], minlength=len(requests))
        wrong = np.unique(part.request[survivors != is_shown])
        wrong = np.concatenate([wrong, judged[counts[judged] != shown[judged]]])
        if len(wrong):
            at = int(wrong[0])
            got = np.sort(part.ad[survivors & (part.request == at)]).tolist()
            raise DataError(
                f"request {requests.request_id[at]}: the candidates that survived all stages must "
                f"be the ads that are shown, got {got} for "
                f"{self.ads[at].tolist()}. Give every candidate, and count its stages."
            )


class Policy(Protocol):
    """Chooses what is shown; called once for each hour that has requests, in order.

    It may keep what it likes between hours, but is told nothing of what came of its answers: it
    learns from the log, between rounds.
    """

    def __call__(self, requests: LiveRequests) -> Slates:
        """Answer every request of an hour."""
        ...


def merge_slates(parts: list[tuple[NDArray[np.int64], Slates]], requests: LiveRequests) -> Slates:
    """Answers of several policies, each to requests of its own, as one.

    Args:
        parts: Places of the requests that a policy answered, and its answers.
        requests: All requests; every one is answered once.
    """
    wanted = (len(requests), requests.slots)
    ads = np.full(wanted, -1, np.int32)
    prices, propensities = np.full(wanted, np.nan), np.full(wanted, np.nan)
    for rows, part in parts:
        ads[rows] = part.ads
        if part.prices is not None:
            prices[rows] = part.prices
        if part.propensities is not None:
            propensities[rows] = part.propensities
    candidates = tuple(
        replace(scores, request=rows[scores.request])
        for rows, part in parts
        for scores in part.candidates
    )
    return Slates(ads=ads, prices=prices, propensities=propensities, candidates=candidates)
