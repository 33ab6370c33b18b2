"""A market that a policy from outside serves, hour by hour; the rules stay those of the market."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tamis.data.market import behaviour
from tamis.data.market.behaviour import TrueProbabilities
from tamis.data.market.judged import JudgedCandidates, null_for_nan
from tamis.data.market.population import Ints
from tamis.data.market.rules import MarketRules
from tamis.data.market.running import Asked, Luck, RunningMarket
from tamis.data.market.serving import CandidateScores, LiveRequests, Policy, Slates
from tamis.data.market.tables import HOUR_MICROS, STAMP, START_MICROS, ads_table, users_table
from tamis.errors import DataError

ANSWER = "answer"
"""Name of the one stage of a policy that does not tell its candidates: all living ads go in, the
slate comes out."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ServedHour:
    """One hour of the market that was served."""

    hour: int
    """Hours since the start of the market."""
    user: NDArray[np.int32]
    """(n,) who asked, for each request of the hour, those that got no ad included."""
    ads: pa.Table
    """A row for each ad that was alive, by ``ad_id``, with the columns that the log shows of it."""
    log: pa.Table
    """A row for each impression, with the columns of an ordinary log. The conversions and their
    times are those that will come: :func:`known_at` takes the future out."""
    truth: pa.Table
    """Chances of the same rows."""
    slates: pa.Table
    """What the policy said of the same rows: ``impression_id``, ``cost_per_click`` in money and
    ``propensity``, null where it said nothing."""
    candidates: tuple[JudgedCandidates, ...]
    """Candidates of some requests, by funnel that chose from them."""

    @property
    def living(self) -> NDArray[np.int32]:
        """Ads (A,) that were alive, rising."""
        living: NDArray[np.int32] = self.ads["ad_id"].to_numpy()
        return living

    @property
    def requests(self) -> int:
        """Requests of the hour."""
        return len(self.user)


class LiveMarket:
    """A market whose slates are chosen outside.

    Population, births and deaths of ads, traffic, behaviour, and the hourly refresh of histories
    and counters are those of :func:`tamis.data.market.simulate` with the same rows, seed and rules,
    so that the same users come at the same hours to the same places. What chance has in store for a
    request at each position is drawn before it is answered: two policies on markets of one seed
    meet the same luck.

    Example:
        >>> def first_ads(requests: LiveRequests) -> Slates:
        ...     ads = requests.ad[: requests.slots]
        ...     return Slates(ads=np.tile(ads, (len(requests), 1)))
        >>> hours = list(LiveMarket(20_000, seed=1).serve(first_ads, days=1))
        >>> len(hours), hours[20].log.num_rows == 4 * hours[20].requests
        (24, True)
    """

    def __init__(
        self,
        rows: int,
        *,
        seed: int = 0,
        rules: MarketRules | None = None,
        judge_every: int = 100,
    ) -> None:
        """Draw the population.

        Args:
            rows: Impressions of the whole market if every place is filled; they decide how many
                users, ads and requests there are. At least one for each place of a slate.
            seed: Decides everything but the policy's own choices, at least 0.
            rules: The market's rules; None for the frozen ones. Their days are those of the market.
            judge_every: Of a policy that does not tell its candidates, one request in so many is
                judged on all living ads. At least 1.

        Raises:
            DataError: A number is out of its range.
        """
        rules = MarketRules() if rules is None else rules
        for name, value, least in (
            ("rows", rows, rules.slate),
            ("seed", seed, 0),
            ("judge_every", judge_every, 1),
        ):
            if value < least:
                raise DataError(f"LiveMarket.{name}: must be at least {least}, got {value}.")
        self.rules, self.seed, self.judge_every = rules, seed, judge_every
        # The state behind, with all that is true: for those who write and judge, not for policies.
        self.running = RunningMarket(rows, rules, seed)
        self._until = np.concatenate([[0], self.running.traffic()])
        self._hour = 0
        self._asked: Asked | None = None

    @property
    def hour(self) -> int:
        """The next hour to be served, from 0."""
        return self._hour

    @property
    def now_micros(self) -> int:
        """Start of the next hour, in microseconds since 1970 UTC: what was served lies before."""
        return START_MICROS + self._hour * HOUR_MICROS

    @property
    def is_over(self) -> bool:
        """Whether all days were served."""
        return self._hour == len(self._until) - 1

    @property
    def num_users(self) -> int:
        """Users of the population, by ``user_id`` from 0."""
        return len(self.running.population.users.age)

    def users(self) -> pa.Table:
        """What is known of every user."""
        return users_table(self.running.population.users)

    def ads(self) -> pa.Table:
        """What is known of every ad of the market, those that are not born yet included.

        For whoever judges; a policy is told of an ad when it is born.
        """
        return ads_table(self.running.population.ads)

    def serve(self, policy: Policy, *, days: int) -> Iterator[ServedHour]:
        """Serve the hours until ``days`` more days are over; those without requests are left out.

        Raises:
            DataError: Fewer days are left, or the policy's answers cannot be shown.
        """
        self.require_days(days)
        end = self._hour + 24 * days
        while self._hour < end:
            served = self.serve_hour(policy)
            if served is not None:
                yield served

    def require_days(self, days: int) -> None:
        """Check that so many days are left, before work is begun that needs them.

        Raises:
            DataError: They are not.
        """
        left = (len(self._until) - 1 - self._hour) // 24
        if not 1 <= days <= left:
            raise DataError(
                f"LiveMarket: days must be from 1 to the {left} that are left, got {days}. Give "
                f"the market more days in its rules."
            )

    def serve_hour(self, policy: Policy) -> ServedHour | None:
        """Serve the next hour; None where it has no requests.

        If the policy's answers are refused, or it raises, the hour is as if it had not begun.

        Raises:
            DataError: All hours were served, or the answers cannot be shown.
        """
        if self.is_over:
            raise DataError(
                f"LiveMarket: must have hours left, got none after {self._hour}. Give the market "
                f"more days in its rules."
            )
        if self._hour % 24 == 0:
            self.running.begin_day()
        first, last = (int(bound) for bound in self._until[self._hour : self._hour + 2])
        served = self._serve(policy, first, last) if last > first else None
        self._hour += 1
        return served

    def chances(
        self, request_id: NDArray[np.int64], ad: Ints, position: Ints | None = None
    ) -> TrueProbabilities:
        """True probabilities of any pairs, for whoever must know the truth: a judge, or an oracle.

        They are those of the hour that is being served, so a policy may ask while it answers.

        Args:
            request_id: (m,) number of each pair's request, which is of this hour.
            ad: (m,) living ads.
            position: (m,) from 1; None for the first.

        Raises:
            DataError: A request is not of the hour, or no hour is being served.
        """
        asked, place = self._places(request_id)
        return self._chances(asked, place, ad, position)

    def logging_candidates(
        self, request_id: NDArray[np.int64], generator: np.random.Generator
    ) -> tuple[Ints, NDArray[np.float32]]:
        """What the market's own logging policy would choose from, and what it values it at.

        Args:
            request_id: (n,) numbers of requests of the hour that is being served.
            generator: Source of the draw of candidates.

        Returns:
            (n, C) ads, sorted within a request, and (n, C) scores.

        Raises:
            DataError: A request is not of the hour, or no hour is being served.
        """
        asked, place = self._places(request_id)
        return self.running.score_candidates(asked.take(place), generator)

    def _places(self, request_id: NDArray[np.int64]) -> tuple[Asked, NDArray[np.int64]]:
        """The hour that is being served, and the places of some of its requests."""
        if self._asked is None:
            raise DataError(
                "LiveMarket: an hour must be being served, got none. Ask from within the policy."
            )
        place = request_id - self._asked.request_id[0]
        if len(place) and not (place.min() >= 0 and place.max() < len(self._asked.user)):
            raise DataError(
                f"LiveMarket: requests must be of hour {self._asked.hour}, got "
                f"{request_id.min()} to {request_id.max()}. Ask for those that are being answered."
            )
        return self._asked, place

    def _serve(self, policy: Policy, first: int, last: int) -> ServedHour:
        running = self.running
        generator = running.generator(self._hour)
        asked = running.ask(self._hour, first, last, generator)
        luck = running.draw_luck(asked, generator)
        requests = self._requests(asked, luck)
        for shared in (asked.request_id, asked.user, luck.micros, requests.ad):
            # The policy sees these very arrays: it must not change who asked, or what there is.
            shared.flags.writeable = False
        self._asked = asked
        try:
            slates = policy(requests)
        finally:
            self._asked = None
        slates.check(requests)
        # Judged before the market remembers what came of the hour.
        candidates = tuple(
            self._judge(asked, part)
            for part in (slates.candidates or (_all_living(requests, slates, self.judge_every),))
            if len(part.request)
        )
        log, truth = running.settle(asked, slates.ads.astype(np.int32, copy=False), luck)
        is_shown = (slates.ads >= 0).reshape(-1)
        return ServedHour(
            hour=asked.hour,
            user=requests.user,
            ads=requests.ad_features,
            log=log,
            truth=truth,
            slates=pa.table(
                {
                    "impression_id": log["impression_id"],
                    "cost_per_click": _shown(slates.prices, is_shown),
                    "propensity": _shown(slates.propensities, is_shown),
                }
            ),
            candidates=candidates,
        )

    def _requests(self, asked: Asked, luck: Luck) -> LiveRequests:
        running, slate = self.running, self.rules.slate
        living = running.living(asked.hour)
        features = pa.table(
            {
                "request_id": asked.request_id,
                "event_time": pa.array(luck.micros, STAMP),
                "position": np.ones(len(asked.user), np.int32),
                **running.request_columns(asked),
            }
        )
        return LiveRequests(
            hour=asked.hour,
            slots=slate,
            request_id=asked.request_id,
            user=asked.user,
            time_micros=luck.micros,
            features=features,
            ad=living,
            ad_features=pa.table(running.ad_columns(living, asked.hour)),
        )

    def _judge(self, asked: Asked, part: CandidateScores) -> JudgedCandidates:
        scores = part.take(np.lexsort((part.ad, part.request)))
        return JudgedCandidates(
            scores=scores,
            request_id=asked.request_id[scores.request],
            user=asked.user[scores.request],
            truth=self._chances(asked, scores.request, scores.ad, None),
        )

    def _chances(
        self, asked: Asked, request: NDArray[np.int64], ad: Ints, position: Ints | None
    ) -> TrueProbabilities:
        running = self.running
        place = np.ones(len(ad), np.int32) if position is None else position
        pairs = running.pairs(asked, request, ad, place)
        return behaviour.true_probabilities(
            running.population, pairs, running.intercepts, self.rules
        )


def known_at(log: pa.Table, time_micros: int) -> pa.Table:
    """A log as it stood at a time: without later impressions and conversions.

    A click whose conversion has not come yet looks like one whose conversion never will.

    Args:
        log: Rows of :class:`ServedHour` logs.
        time_micros: The time, in microseconds since 1970 UTC.
    """
    log = log.filter(log["event_time"].cast(pa.int64()).to_numpy() < time_micros)
    click = log["click"].to_numpy() == 1
    times = log["conversion_time"].cast(pa.int64()).fill_null(np.iinfo(np.int64).max).to_numpy()
    has_come = times < time_micros
    columns = {
        "conversion": pa.array(has_come.astype(np.int8), mask=~click),
        "conversion_time": pa.array(times, mask=~has_come).cast(STAMP),
    }
    for name, values in columns.items():
        log = log.set_column(log.column_names.index(name), name, values)
    return log


def _all_living(requests: LiveRequests, slates: Slates, every: int) -> CandidateScores:
    """One stage from all living ads to the slate, for one request in so many."""
    judged = np.flatnonzero(requests.request_id % every == 0)
    num_ads = len(requests.ad)
    # Which of the living ads each judged slate holds; empty places fall on a column of their own.
    shown = np.zeros((len(judged), num_ads + 1), np.int8)
    ads = slates.ads[judged]
    column = np.where(ads >= 0, np.searchsorted(requests.ad, ads), num_ads)
    np.put_along_axis(shown, column, 1, axis=1)
    return CandidateScores(
        stages=(ANSWER,),
        request=np.repeat(judged, num_ads),
        ad=np.tile(requests.ad, len(judged)),
        survived=shown[:, :num_ads].reshape(-1),
        scores=np.full((len(judged) * num_ads, 1), np.nan, np.float32),
    )


def _shown(values: NDArray[np.float64] | None, is_shown: NDArray[np.bool_]) -> pa.Array:
    if values is None:
        return pa.nulls(int(is_shown.sum()), pa.float64())
    return null_for_nan(values.reshape(-1)[is_shown])
