"""A stage around the parts of an early-stage ranker: cached towers, one call for all candidates."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tamis.data.batch import Batch, concatenate
from tamis.data.schema import InputSpec, Task
from tamis.data.sides import side_batch, side_spec
from tamis.errors import ConfigError, DataError
from tamis.funnel.ads import AdTable, Valuation
from tamis.funnel.calibration import UNCALIBRATED, Calibration
from tamis.funnel.candidates import Candidates
from tamis.funnel.ranker import AdFeatures, features_of
from tamis.funnel.request import Request
from tamis.funnel.stage import BatchStage, Scored
from tamis.funnel.stages import flops_of
from tamis.models.early_serving import EarlyStageParts
from tamis.nn.rounded import rounded

_ADS_AT_A_TIME = 4096


class EarlyStageRanker(BatchStage):
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
        precision: torch.dtype = torch.float32,
        flops_per_pair: float | None = None,
    ) -> None:
        """Compute the vectors of all ads.

        Args:
            parts: Of ``EarlyStage.export``, on the CPU; its table of ads is not used.
            spec: Inputs of the model, in order.
            features: Item fields of all ads.
            ads: Bids and quality of the same ads.
            value: Combines predictions and bid.
            max_users: Most users whose vectors are kept at a time. At least 1.
            time_to_live_ms: How much later than the request that a vector was made for a later one
                may be, on the requests' own times; 0 makes one for every time. At least 0.
            calibration: What predictions pass through before they are used.
            precision: Type of the scorer's matrix products: float32 or bfloat16; ads' vectors are
                kept in it.
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
        is_rounded = precision == torch.bfloat16
        scorer = rounded(parts.scorer) if is_rounded else parts.scorer
        self._parts = replace(parts, scorer=scorer)
        self._spec = spec
        self._ads = ads
        self._value = value
        self._calibration = calibration
        self._flops_per_pair = flops_per_pair
        self._users = _UserVectors(max_users, time_to_live_ms)
        self._is_rounded = is_rounded
        # By ad row: what the parts' own table finds by id costs a look into a dictionary for each.
        self._vectors = torch.cat(
            [
                parts.embed_ads(features.of_ads(rows)).to(precision)
                for rows in torch.arange(len(ads)).split(_ADS_AT_A_TIME)
            ]
        )

    def score_all(
        self, requests: Sequence[Request], candidates: Sequence[Candidates], keep: int
    ) -> list[Scored]:
        """Predictions and total values for several requests: each tower runs once for all.

        Raises:
            DataError: A request has no features.
        """
        del keep
        features = concatenate([features_of(request) for request in requests])
        users, is_known = self._users_of(requests, features)
        queries = self._parts.query(users, self._context(features))
        # In one order, whatever theirs: matrix products round a row by its place in the batch.
        ads = np.concatenate([np.sort(its.ads) for its in candidates])
        counts = [len(its) for its in candidates]
        rows = np.repeat(np.arange(len(counts)), counts)
        predictions = self._predictions(queries, rows, ads)
        scores = self._ads.total_value(self._value, predictions, ads)
        found = Candidates(ads=ads, scores=scores, predictions=predictions)
        return [
            Scored(
                candidates=part,
                scored_pairs=len(part),
                flops=flops_of(self._flops_per_pair, len(part)),
                cache_lookups=1,
                cache_hits=int(known),
            )
            for part, known in zip(found.split(counts), is_known, strict=True)
        ]

    def predict(
        self, features: Batch, rows: NDArray[np.int64], ads: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float64]]:
        """Predictions (P,) by task for P pairs of any requests; no cached user is looked up.

        Args:
            features: Encoded fields of user and context, a row for each request.
            rows: (P,) row in ``features`` of each pair.
            ads: (P,) ad of each pair.
        """
        return self._predictions(self._queries(features), rows, ads)

    def predict_rows(self, rows: Batch, ads: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Predictions (P,) by task for P rows as they are, the item's fields included.

        Args:
            rows: Encoded fields of user, context and item.
            ads: (P,) ad of each row, which says how it is billed.
        """
        vectors = self._parts.embed_ads(side_batch(rows, self._spec, "item"))
        vectors = vectors.to(self._vectors.dtype)
        return self._scored(self._queries(rows), np.arange(rows.num_rows), vectors, ads)

    def _users_of(self, requests: Sequence[Request], features: Batch) -> tuple[Tensor, list[bool]]:
        """Vectors of the users, and which of them were known."""
        found = [self._users.get(request) for request in requests]
        missing = [at for at, vector in enumerate(found) if vector is None]
        if missing:
            rows = features.take(torch.tensor(missing))
            made = self._parts.embed_user(side_batch(rows, self._spec, "user"))
            for at, vector in zip(missing, made.split(1), strict=True):
                found[at] = vector
                # A copy: a part would keep the vectors of the others in memory.
                self._users.put(requests[at], vector.clone())
        is_known = [at not in missing for at in range(len(found))]
        return torch.cat([vector for vector in found if vector is not None]), is_known

    def _queries(self, features: Batch) -> Tensor:
        user = self._parts.embed_user(side_batch(features, self._spec, "user"))
        return self._parts.query(user, self._context(features))

    def _context(self, features: Batch) -> Batch | None:
        if self._parts.context_tower is None:
            return None
        return side_batch(features, self._spec, "context")

    def _predictions(
        self, queries: Tensor, rows: NDArray[np.int64], ads: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float64]]:
        vectors = self._vectors.index_select(0, torch.from_numpy(ads))
        return self._scored(queries, rows, vectors, ads)

    def _scored(
        self, queries: Tensor, rows: NDArray[np.int64], vectors: Tensor, ads: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float64]]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._is_rounded):
            found = self._parts.score_vectors(queries, vectors, torch.from_numpy(rows))
        return self._calibration.apply(found, self._ads.billing[ads])


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
