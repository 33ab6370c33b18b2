"""A stage around the parts of an early-stage ranker: cached towers, one call for all candidates."""

import threading
from collections import OrderedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec, Task
from tamis.data.sides import side_batch, side_spec
from tamis.errors import ConfigError, DataError
from tamis.funnel.ads import AdTable, Valuation
from tamis.funnel.calibration import UNCALIBRATED, Calibration
from tamis.funnel.candidates import Candidates
from tamis.funnel.ranker import AdFeatures
from tamis.funnel.request import Request
from tamis.funnel.stage import Scored
from tamis.funnel.stages import flops_of
from tamis.models.early_serving import EarlyStageParts

_ADS_AT_A_TIME = 4096


class EarlyStageRanker:
    """Candidates by the total value that an early-stage ranker gives them.

    The ad tower runs once for each ad, when the stage is made; the user tower once for each user
    and time to live; a request costs the context tower and one call of the scorer. The users seen
    longest ago are forgotten first.

    Source:
        Wang et al., Towards the Better Ranking Consistency, AdKDD 2023, arXiv:2307.11096: towers
        that are cached by user and by ad, and an order by the total value of the final stage.

    Differs from the source:
        When cached vectors expire, and which head serves, is not in what could be read.
    """

    def __init__(
        self,
        parts: EarlyStageParts,
        spec: InputSpec,
        features: AdFeatures,
        ads: AdTable,
        value: Valuation,
        *,
        max_users: int,
        time_to_live_ms: float,
        calibration: Calibration = UNCALIBRATED,
        flops_per_pair: float | None = None,
    ) -> None:
        """Fill the table of ads.

        Args:
            parts: Of ``EarlyStage.export``, on the CPU; its table of ads is still empty.
            spec: Inputs of the model, in order.
            features: Item fields of all ads.
            ads: Bids and quality of the same ads.
            value: Combines predictions and bid.
            max_users: Most users whose vectors are kept at a time. At least 1.
            time_to_live_ms: How much later than the request that a vector was made for a later one
                may be, on the requests' own times; 0 makes one for every time. At least 0.
            calibration: What predictions pass through before they are used.
            flops_per_pair: Operations of the scorer for one ad, for the trace; None: not known.

        Raises:
            ConfigError: A number is out of range.
            DataError: Features and attributes are not of the same number of ads, or the features
                are not those of the ad tower.
        """
        if max_users < 1 or not time_to_live_ms >= 0:
            raise ConfigError(
                f"EarlyStageRanker: max_users must be at least 1 and time_to_live_ms at least 0, "
                f"got max_users={max_users!r}, time_to_live_ms={time_to_live_ms!r}."
            )
        if len(features) != len(ads):
            raise DataError(
                f"EarlyStageRanker: features and ads must be of the same ads, got {len(features)} "
                f"and {len(ads)}. Make both from one list of ads."
            )
        _check_item_inputs(features, spec)
        self.tasks: tuple[Task, ...] = parts.tasks
        self._parts = parts
        self._spec = spec
        self._ads = ads
        self._value = value
        self._calibration = calibration
        self._flops_per_pair = flops_per_pair
        self._users = _UserVectors(max_users, time_to_live_ms)
        for rows in torch.arange(len(ads)).split(_ADS_AT_A_TIME):
            parts.ad_table.add(rows.numpy(), parts.embed_ads(features.of_ads(rows)))

    def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
        """Predictions and total value of each candidate.

        Raises:
            DataError: The request has no features.
        """
        del keep
        if request.features is None:
            raise DataError(
                f"request {request.request_id}: must have features for a ranker, got none. Encode "
                f"its user and context."
            )
        user = self._users.get(request)
        is_known = user is not None
        if user is None:
            user = self._parts.embed_user(side_batch(request.features, self._spec, "user"))
            self._users.put(request, user)
        # In one order, whatever theirs: matrix products round a row by its place in the batch.
        ads = np.sort(candidates.ads)
        query = self._parts.query(user, self._context(request.features))
        predictions = self._predictions(query, ads)
        scores = self._ads.total_value(self._value, predictions, ads)
        return Scored(
            candidates=Candidates(ads=ads, scores=scores, predictions=predictions),
            scored_pairs=len(ads),
            flops=flops_of(self._flops_per_pair, len(ads)),
            cache_lookups=1,
            cache_hits=int(is_known),
        )

    def predict(
        self, features: Batch, rows: NDArray[np.int64], ads: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float64]]:
        """Predictions (P,) by task for P pairs of any requests; no cached user is looked up.

        Args:
            features: Encoded fields of user and context, a row for each request.
            rows: (P,) row in ``features`` of each pair.
            ads: (P,) ad of each pair.
        """
        user = self._parts.embed_user(side_batch(features, self._spec, "user"))
        query = self._parts.query(user, self._context(features))
        return self._predictions(query[torch.from_numpy(rows)], ads)

    def _context(self, features: Batch) -> Batch | None:
        if self._parts.context_tower is None:
            return None
        return side_batch(features, self._spec, "context")

    def _predictions(self, query: Tensor, ads: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        return self._calibration.apply(self._parts.score(query, ads), self._ads.billing[ads])


class _UserVectors:
    """Vectors of users, each with the time of the request that it was made for."""

    def __init__(self, max_users: int, time_to_live_ms: float) -> None:
        self._max_users = max_users
        self._time_to_live_micros = time_to_live_ms * 1e3
        self._vectors: OrderedDict[int, tuple[int, Tensor]] = OrderedDict()
        # A late call in a TimeOut still runs while the next request asks.
        self._lock = threading.Lock()

    def get(self, request: Request) -> Tensor | None:
        """The user's vector, if it is young enough for the request."""
        with self._lock:
            made, vector = self._vectors.get(request.user, (0, None))
            age = request.time_micros - made
            if vector is None or not 0 <= age <= self._time_to_live_micros:
                return None
            self._vectors.move_to_end(request.user)
            return vector

    def put(self, request: Request, vector: Tensor) -> None:
        """Keep a vector that was made for a request."""
        with self._lock:
            self._vectors[request.user] = (request.time_micros, vector)
            self._vectors.move_to_end(request.user)
            if len(self._vectors) > self._max_users:
                self._vectors.popitem(last=False)


def _check_item_inputs(features: AdFeatures, spec: InputSpec) -> None:
    """Refuse features that the ad tower would take for others."""
    wanted = side_spec(spec, "item")
    needs = (
        len(wanted.categorical),
        len(wanted.numeric),
        sorted(group.name for group in wanted.sequences),
    )
    found = (features.ids.shape[1], features.numeric.shape[1], sorted(features.sequences))
    if found != needs:
        raise DataError(
            f"EarlyStageRanker: features must hold {needs[0]} ids, {needs[1]} numbers and the "
            f"sequences {needs[2]} of an ad, got {found[0]}, {found[1]} and {found[2]}. Make them "
            f"with the schema and spec of the model."
        )
