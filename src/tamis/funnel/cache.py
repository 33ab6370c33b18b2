"""Stages that remember: whole answers by user, or scores by ad. Both are bounded and count hits."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tamis.errors import ConfigError, DataError
from tamis.funnel.candidates import Candidates
from tamis.funnel.request import Request
from tamis.funnel.stage import BatchStage, Scored, Stage, score_all


@dataclass(frozen=True, kw_only=True, slots=True)
class UserCache:
    """How the answers of a stage are kept by user, see :class:`CachedByUser`."""

    time_to_live_ms: float
    """How much later than the request that was answered another may be, on the requests' own times,
    so that a replay does not keep answers longer than a server does. Positive."""
    max_users: int = 100_000
    """Most users remembered at a time. At least 1."""

    def __post_init__(self) -> None:
        if self.max_users < 1 or not self.time_to_live_ms > 0:
            raise ConfigError(
                f"cache by user: max_users must be at least 1 and time_to_live_ms positive, got "
                f"max_users={self.max_users!r}, time_to_live_ms={self.time_to_live_ms!r}."
            )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Answer:
    """What a stage answered a user."""

    time_micros: int
    asked: bytes
    """Digest of the candidates."""
    keep: int
    scored: Candidates


class CachedByUser(BatchStage):
    """A stage around a stage whose answer to a user serves the user's next requests too.

    An answer is used again for the same candidates and the same number to keep, and no longer than
    its time to live. It knows nothing of the later request's context: choose a stage that hardly
    reads it, such as retrieval. Of ads with equal scores those stay that the first request decided
    for. What fell back or is not finite is not remembered, nor is who has a code below 0, and so
    asks once. The users seen longest ago are forgotten first.
    """

    def __init__(self, stage: Stage, cache: UserCache) -> None:
        """Start with nothing remembered of a stage's answers."""
        self.stage = stage
        self._max_users = cache.max_users
        self._time_to_live_micros = cache.time_to_live_ms * 1e3
        self._answers: OrderedDict[int, _Answer] = OrderedDict()
        # How often answers were cleared: one that was under way meanwhile is out of date.
        self._clearings = 0
        # The candidates that were digested last: often they are all ads, the very same array.
        self._digested: tuple[NDArray[np.int64] | None, bytes] = (None, b"")
        # A late call in a TimeOut still runs while the next request asks.
        self._lock = threading.Lock()

    def score_all(
        self, requests: Sequence[Request], candidates: Sequence[Candidates], keep: int
    ) -> list[Scored]:
        """Remembered answers, and new ones for the other requests, which are asked together."""
        with self._lock:
            clearings = self._clearings
            asked = [self._digest(its.ads) for its in candidates]
            found = [self._find(*pair, keep) for pair in zip(requests, asked, strict=True)]
        missing = [at for at, scored in enumerate(found) if scored is None]
        made: list[Scored] = []
        if missing:
            several = [requests[at] for at in missing], [candidates[at] for at in missing]
            made = score_all(self.stage, *several, keep)
        for at, scored in zip(missing, made, strict=True):
            found[at] = self._kept(requests[at], asked[at], scored, keep, clearings)
        return [scored for scored in found if scored is not None]

    def clear(self) -> None:
        """Forget every answer, as after a change of the stage."""
        with self._lock:
            self._clearings += 1
            self._answers.clear()

    def _digest(self, ads: NDArray[np.int64]) -> bytes:
        """What tells candidates from others, in less memory than a copy for each user."""
        if self._digested[0] is not ads:
            self._digested = ads, hashlib.blake2b(ads.tobytes(), digest_size=16).digest()
        return self._digested[1]

    def _find(self, request: Request, asked: bytes, keep: int) -> Scored | None:
        answer = self._answers.get(request.user)
        if answer is None or (answer.asked, answer.keep) != (asked, keep):
            return None
        age = request.time_micros - answer.time_micros
        if not 0 <= age <= self._time_to_live_micros:
            return None
        self._answers.move_to_end(request.user)
        return Scored(candidates=answer.scored, cache_lookups=1, cache_hits=1)

    def _kept(
        self, request: Request, asked: bytes, scored: Scored, keep: int, clearings: int
    ) -> Scored:
        """What the stage answered, now remembered if it may be."""
        if not scored.fallback and scored.candidates.is_finite:
            # What the funnel would cut is not worth remembering: a stage may return all ads.
            best = scored.candidates.best(keep, seed=request.request_id)
            scored = replace(scored, candidates=best)
            answer = _Answer(time_micros=request.time_micros, asked=asked, keep=keep, scored=best)
            with self._lock:
                if clearings == self._clearings and request.user >= 0:
                    self._remember(request.user, answer)
        return replace(scored, cache_lookups=scored.cache_lookups + 1)

    def _remember(self, user: int, answer: _Answer) -> None:
        self._answers[user] = answer
        self._answers.move_to_end(user)
        if len(self._answers) > self._max_users:
            self._answers.popitem(last=False)


class CachedByAd:
    """A stage around a stage whose score of an ad depends on the ad alone, not on the request.

    Only ads that are not remembered reach the inner stage. The ads used longest ago are forgotten
    first; an ad that has changed is forgotten by :meth:`forget`. What fell back or is not finite is
    not remembered. Everything is an array over ads or places: there is no Python per candidate.
    """

    def __init__(self, stage: Stage, *, num_ads: int, max_ads: int) -> None:
        """Start with nothing remembered.

        Args:
            stage: Whose scores to remember.
            num_ads: Ads there are, N.
            max_ads: Most ads remembered at a time. At least 1.

        Raises:
            ConfigError: A number is out of range.
        """
        if num_ads < 1 or max_ads < 1:
            raise ConfigError(
                f"CachedByAd: num_ads and max_ads must be at least 1, got num_ads={num_ads!r}, "
                f"max_ads={max_ads!r}."
            )
        self.stage = stage
        places = min(num_ads, max_ads)
        self._place_of_ad = np.full(num_ads, -1, np.int64)
        self._ad_of_place = np.full(places, -1, np.int64)
        # When a place was used last; free places come before all others.
        self._used = np.full(places, -1, np.int64)
        self._now = 0
        # How often ads were forgotten: a score that was under way meanwhile may be out of date.
        self._forgettings = 0
        self._scores = np.zeros(places)
        # Not known before the first answer.
        self._predictions: dict[str, NDArray[np.float64]] | None = None
        # A late call in a TimeOut still runs while the next request asks.
        self._lock = threading.Lock()

    def __call__(self, request: Request, candidates: Candidates, keep: int) -> Scored:
        """Remembered scores, and new ones for the other ads."""
        del keep  # Which ads are the best is known only beside the remembered ones.
        with self._lock:
            self._now += 1
            forgettings = self._forgettings
            places = self._place_of_ad[candidates.ads]
            known, missing = np.flatnonzero(places >= 0), np.flatnonzero(places < 0)
            self._used[places[known]] = self._now
            found = self._read(candidates.ads[known], places[known])
        if not len(missing):
            return Scored(candidates=found, cache_lookups=len(known), cache_hits=len(known))
        scored = self.stage(request, candidates.take(missing), len(missing))
        made = scored.candidates
        if scored.fallback:
            # Remembered scores do not compare with those of the stage before.
            joined = candidates
        else:
            with self._lock:
                if made.is_finite and forgettings == self._forgettings:
                    self._remember(made)
            joined = _joined(found, made)
        return replace(
            scored,
            candidates=joined,
            cache_lookups=scored.cache_lookups + len(candidates),
            cache_hits=scored.cache_hits + len(known),
        )

    def forget(self, ads: NDArray[np.int64]) -> None:
        """Forget ads (n,) that have changed."""
        with self._lock:
            self._forgettings += 1
            places = self._place_of_ad[ads]
            places = places[places >= 0]
            self._place_of_ad[self._ad_of_place[places]] = -1
            self._ad_of_place[places] = -1
            self._used[places] = -1

    def _read(self, ads: NDArray[np.int64], places: NDArray[np.int64]) -> Candidates:
        return Candidates(
            ads=ads,
            scores=self._scores[places],
            predictions={n: values[places] for n, values in (self._predictions or {}).items()},
        )

    def _remember(self, scored: Candidates) -> None:
        if not len(scored):
            return
        if self._predictions is None:
            self._predictions = {name: np.zeros(len(self._scores)) for name in scored.predictions}
        if self._predictions.keys() != scored.predictions.keys():
            raise DataError(
                f"CachedByAd: the stage must predict the same tasks for every ad, got "
                f"{sorted(scored.predictions)} after {sorted(self._predictions)}. Make a new cache "
                f"when the stage changes."
            )
        # Another thread may have been faster with some of them.
        new = np.flatnonzero(self._place_of_ad[scored.ads] < 0)[: len(self._scores)]
        if not len(new):
            return
        places = np.argpartition(self._used, len(new) - 1)[: len(new)]
        former = self._ad_of_place[places]
        self._place_of_ad[former[former >= 0]] = -1
        self._place_of_ad[scored.ads[new]] = places
        self._ad_of_place[places] = scored.ads[new]
        self._used[places] = self._now
        self._scores[places] = scored.scores[new]
        for name, values in scored.predictions.items():
            self._predictions[name][places] = values[new]


def _joined(first: Candidates, second: Candidates) -> Candidates:
    if not len(first) or not len(second):
        return first if len(first) else second
    return Candidates(
        ads=np.concatenate([first.ads, second.ads]),
        scores=np.concatenate([first.scores, second.scores]),
        predictions={
            name: np.concatenate([values, second.predictions[name]])
            for name, values in first.predictions.items()
        },
    )
