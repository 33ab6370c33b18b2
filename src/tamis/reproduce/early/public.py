"""A cascade simulated over a public set: an oracle says what users would have done with any ad.

Nobody logged the candidates that these users had, so a request is an event of the set, and its
candidates are the event's item and a draw of others. What really happened is the label wherever it
is known; elsewhere it is drawn with the chances that the oracle gives, a model of its own that was
trained on everything and that no ranker sees. Tables tell the share of drawn labels among those of
the judged impressions.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tamis import api, artifacts
from tamis.data.cascade_log import IMPRESSED
from tamis.data.ingest import ingest
from tamis.data.public_sets.behaviours import BEHAVIOURS, Behaviours
from tamis.data.public_sets.files import SPLITS
from tamis.errors import DataError
from tamis.funnel.ads import AdTable
from tamis.funnel.value import ValueFunction
from tamis.reproduce.early.cascade import (
    Rows,
    all_rows,
    log_of,
    pairs_table,
    pass_cascade,
    sampled_rows,
)
from tamis.reproduce.early.pairs import PairPredictor, Predictions
from tamis.reproduce.early.stages import (
    Earlier,
    Stages,
    draw_ads,
    draw_bids,
    early_schema,
    train_stages,
    value_weights,
)
from tamis.reproduce.early.study import SIMULATED, Part, first_valid_request, write_study
from tamis.reproduce.early.variants import Judges, PublicCascade
from tamis.reproduce.training import train

ROWS_VERSION = 2
"""Of the rows that both stages and the oracle learn from; another one makes another cascade."""
_SEED = 0
_REQUESTS_AT_A_TIME = 256
_POPULARITY_POWER = 0.75


def make_public_study(
    cascade: PublicCascade,
    data: Path | None,
    recipes: Path,
    work: Path,
    out: Path,
    *,
    judges: Judges = "test",
) -> None:
    """Train oracle and both stages, send requests through them, and write what they saw.

    Args:
        cascade: How large, and over which set.
        data: Folder of the public sets.
        recipes: Folder with ``teacher.toml``, ``incumbent.toml`` and ``oracle.toml``.
        work: For datasets and runs.
        out: Folder of the study.
        judges: Requests of the last part of the events, or those whose rows validate.

    Raises:
        DataError: The public set is not at hand.
        TamisError: A signal stopped a training.
    """
    if data is None:
        raise DataError(
            f"cascade: needs the public set {cascade.dataset!r}, got no folder of public sets. "
            f"Set TAMIS_DATA or --data."
        )
    world = _World(BEHAVIOURS[cascade.dataset](data / cascade.dataset), cascade)
    files = world.write_rows(work / "t1", world.events_of(0), num_splits=3)
    earlier = train_stages(files, world.found.schema, world.early_schema, recipes, work)
    oracle = world.train_oracle(recipes, work)
    conversion_rate = earlier.rates["conversion"]
    bid = draw_bids(world.found.advertiser, seed=_SEED)
    ads = draw_ads(bid, world.found.advertiser, conversion_rate)
    weights = value_weights(
        world.found.tasks, bid, earlier.rates, is_bad=world.found.quality_is_bad
    )
    simulator = _Simulator(world, cascade, earlier, oracle, ads, ValueFunction(weights))
    sizes = cascade.sizes
    train = simulator.parts(1, sizes.train_requests, tells_all=False)
    if judges == "test":
        judged = simulator.parts(2, sizes.test_requests, tells_all=True)
    else:
        first = first_valid_request(train)
        judged = simulator.parts(1, sizes.train_requests, tells_all=True, first=first)
    write_study(
        out,
        train=train,
        test=judged,
        schema=world.early_schema,
        ads=ads,
        value=weights,
        constants=earlier.rates,
        sizes=sizes,
        notes={
            **earlier.notes,
            SIMULATED: simulator.simulated_share(judged=True),
            f"{SIMULATED}_of_log": simulator.simulated_share(judged=False),
        },
    )


class _World:
    """Users, items and events, and rows for the models that are trained on them."""

    def __init__(self, found: Behaviours, cascade: PublicCascade) -> None:
        self.found, self._cascade = found, cascade
        self.num_items = found.items.num_rows
        self.early_schema = early_schema(found.schema)
        keys = found.user * self.num_items + found.item
        self._by_key = np.argsort(keys)
        self._keys = keys[self._by_key]
        counts = np.bincount(found.item[found.part == 0], minlength=self.num_items)
        self.log_popularity = _POPULARITY_POWER * np.log(counts + 1.0)

    def events_of(self, *parts: int) -> NDArray[np.int64]:
        """At most so many events of some parts as train a model, in order of time."""
        events = np.flatnonzero(np.isin(self.found.part, parts))
        generator = np.random.default_rng([_SEED, *parts])
        size = min(len(events), self._cascade.teacher_events)
        return np.sort(generator.choice(events, size, replace=False))

    def event_of(self, user: NDArray[np.int64], item: NDArray[np.int64]) -> NDArray[np.int64]:
        """The event of each pair; -1 where there is none."""
        wanted = user * self.num_items + item
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where(self._keys[at] == wanted, self._by_key[at], -1)

    def write_rows(
        self, folder: Path, events: NDArray[np.int64], *, num_splits: int
    ) -> dict[str, Path]:
        """Rows of events, each beside items that their users had not met, as logs of splits.

        What they meet in later parts may stand among these: a row that was left out for it would
        tell of the future. Counts are those of the time of each event.
        """
        found, count = self.found, self._cascade.negatives
        generator = np.random.default_rng([_SEED, len(events)])
        weights = np.exp(self.log_popularity)
        drawn = generator.choice(self.num_items, (len(events), count), p=weights / weights.sum())
        item = np.concatenate([found.item[events][:, None], drawn], axis=1)
        of_event = np.repeat(events, count + 1)
        is_own = np.tile(np.arange(count + 1) == 0, len(events))
        event = self.event_of(found.user[of_event], item.ravel())
        is_met = (event >= 0) & (found.part[event] <= found.part[events].max())
        kept = is_own | ~is_met
        of_event, is_own, item = of_event[kept], is_own[kept], item.ravel()[kept]
        requests = self.requests(events)
        rows = np.searchsorted(events, of_event)
        columns = [field.source for field in found.schema.fields]
        table = pairs_table(requests, found.items, rows, item, columns)
        for name, values in found.counts_before(of_event, item).items():
            table = table.set_column(table.column_names.index(name), name, pa.array(values))
        labels = self.labels(np.where(is_own, of_event, -1))
        for name, values in labels.items():
            table = table.append_column(name, pa.array(values, from_pandas=True))
        # Rows of one event stay together, so that no split holds another's negatives.
        bounds = np.searchsorted(
            rows, (np.array([0.0, 0.8, 0.9])[:num_splits] * len(events)).astype(np.int64)
        ).tolist()
        files = {}
        for at, (start, stop) in enumerate(zip(bounds, [*bounds[1:], table.num_rows], strict=True)):
            files[SPLITS[at]] = folder / f"{SPLITS[at]}.parquet"
            with artifacts.atomic_path(files[SPLITS[at]]) as temporary:
                pq.write_table(table.slice(start, stop - start), temporary)
        return files

    def labels(self, event: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        """By task, what came of events; of -1, that nothing did."""
        click, conversion, quality = self.found.tasks
        is_real = event >= 0
        return {
            click: is_real.astype(np.float32),
            conversion: np.where(is_real, self.found.conversion[event], np.nan).astype(np.float32),
            quality: (is_real & self.found.quality[event]).astype(np.float32),
        }

    def requests(self, events: NDArray[np.int64]) -> pa.Table:
        """What is known of the users of events before these."""
        users = self.found.users.take(pa.array(self.found.user[events]))
        return users.append_column("history", self.found.histories(events))

    def train_oracle(self, recipes: Path, work: Path) -> PairPredictor:
        """The model that says what users would have done, trained on the events of all parts."""
        files = self.write_rows(work / "all", self.events_of(0, 1, 2), num_splits=2)
        if not api.is_dataset(work / "dataset-oracle"):
            ingest(dict(files), work / "dataset-oracle", schema=self.early_schema)
        train(work / "dataset-oracle", recipe=recipes / "oracle.toml", run=work / "oracle")
        return PairPredictor(work / "oracle")


class _Simulator:
    """Sends requests through the cascade."""

    def __init__(
        self,
        world: _World,
        cascade: PublicCascade,
        earlier: Earlier,
        oracle: PairPredictor,
        ads: AdTable,
        value: ValueFunction,
    ) -> None:
        self._world, self._cascade, self._earlier = world, cascade, earlier
        self._oracle, self._ads, self._value = oracle, ads, value
        self._fields = [field.source for field in world.early_schema.fields]
        # By whether they judge.
        self._drawn, self._shown = Counter[bool](), Counter[bool]()

    def simulated_share(self, *, judged: bool) -> float:
        """Share of the impressions so far, that judge or that are learned from, with drawn labels.

        Args:
            judged: Which of them.
        """
        return self._drawn[judged] / self._shown[judged]

    def parts(self, part: int, wanted: int, *, tells_all: bool, first: int = 0) -> list[Part]:
        """Rows of requests of a part of the events from the first on, in order of time."""
        events = np.flatnonzero(self._world.found.part == part)
        generator = np.random.default_rng([_SEED, part, 1])
        size = min(wanted, len(events))
        events = np.sort(generator.choice(events, size, replace=False))
        events = events[events >= first]
        return [
            self._part(events[start : start + _REQUESTS_AT_A_TIME], generator, tells_all)
            for start in range(0, len(events), _REQUESTS_AT_A_TIME)
        ]

    def _part(
        self, events: NDArray[np.int64], generator: np.random.Generator, tells_all: bool
    ) -> Part:
        world, items = self._world, self._world.found.items
        requests = world.requests(events)
        item = self._candidates(events, generator)
        stages = Stages(
            final=self._earlier.final.bind(requests, items),
            early=self._earlier.early.bind(requests, items),
            ads=self._ads,
            value=self._value,
            constants=self._earlier.rates,
        )

        def final(rows: NDArray[np.int64], places: NDArray[np.int64]) -> Predictions:
            return stages.final.predict(rows, item[rows, places])

        early_value = stages.early_values(item, item, world.found.tasks[:1])
        outcome = pass_cascade(
            early_value,
            final,
            lambda predictions, rows, places: stages.worth(predictions, item[rows, places]),
            self._cascade.sizes,
            generator,
        )
        if tells_all:
            rows = all_rows(outcome, final)
        else:
            seed = int(generator.integers(2**31))
            rows = sampled_rows(outcome, final, self._cascade.sizes, seed=seed)
        candidate = item[rows.row, rows.place]
        chances = self._oracle.bind(requests, items).predict(rows.row, candidate)
        labels = self._labels(events, rows, candidate, chances, generator, judged=tells_all)
        inputs = pairs_table(requests, items, rows.row, candidate, self._fields)
        log = log_of(rows, request=events[rows.row], candidate=candidate, labels=labels)
        incumbent = early_value[rows.row, rows.place]
        return Part(log=log, inputs=inputs, truth=chances, incumbent=incumbent)

    def _candidates(
        self, events: NDArray[np.int64], generator: np.random.Generator
    ) -> NDArray[np.int64]:
        """(R, N) items: the event's own, and others by popularity that the user has not met."""
        found, world = self._world.found, self._world
        # The largest of log weights with Gumbel noise are a draw without replacement.
        keys = world.log_popularity + generator.gumbel(size=(len(events), world.num_items))
        bounds, met = found.earlier(events)
        keys[np.repeat(np.arange(len(events)), np.diff(bounds)), met] = -np.inf
        keys[np.arange(len(events)), found.item[events]] = np.inf
        best = np.argpartition(-keys, self._cascade.candidates - 1, axis=1)
        return np.sort(best[:, : self._cascade.candidates], axis=1)

    def _labels(
        self,
        events: NDArray[np.int64],
        rows: Rows,
        candidate: NDArray[np.int64],
        chances: Predictions,
        generator: np.random.Generator,
        *,
        judged: bool,
    ) -> dict[str, NDArray[np.float32]]:
        """What really came of pairs in their part of the events, else what chance says."""
        world = self._world
        click, conversion, quality = world.found.tasks
        event = world.event_of(world.found.user[events][rows.row], candidate)
        # Those of its own part alone: else requests of the log would have more than test ones.
        part, own = world.found.part, int(world.found.part[events[0]])
        event = np.where((event >= 0) & (part[event] == own), event, -1)
        is_real = event >= 0
        real = world.labels(event)
        happens = {
            task: generator.random(len(candidate)) < chance for task, chance in chances.items()
        }
        is_shown = rows.pool == IMPRESSED
        self._shown[judged] += int(np.count_nonzero(is_shown))
        self._drawn[judged] += int(np.count_nonzero(is_shown & ~is_real))
        drawn: dict[str, NDArray[Any]] = {
            click: happens[click],
            conversion: np.where(happens[click], happens[conversion], np.nan),
            quality: happens[quality],
        }
        return {
            task: np.where(is_real, real[task], drawn[task]).astype(np.float32)
            for task in world.found.tasks
        }
