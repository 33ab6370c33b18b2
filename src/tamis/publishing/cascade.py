"""Rows for an early stage: a logged split's impressions, and candidates that nobody was shown.

A log holds what was shown. An early stage scores far more than that, so beside the impressions
stand other ads of some requests, with what a trained final stage predicts for them: some that the
stages before it keep, and some that they turn away. Rows stay encoded; nothing is ingested again.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from tamis import artifacts
from tamis.data.batch import Batch, concatenate
from tamis.data.cascade_log import (
    FINAL_PREFIX,
    IMPRESSED,
    POOL,
    RATE,
    REJECTED,
    SCORED,
    WEIGHT,
    CascadeLog,
    cascade_schema,
)
from tamis.data.dataset import Dataset, DatasetWriter, EncodedRows, Split
from tamis.data.encoders import Encoders
from tamis.data.inputs import InputSelection
from tamis.data.loader import Loader
from tamis.data.rejected import sample_rejected
from tamis.data.schema import InputSpec, Schema, Task
from tamis.data.sides import side_batch
from tamis.errors import ConfigError, DataError
from tamis.funnel.blueprint import Blueprint
from tamis.funnel.candidates import Candidates
from tamis.funnel.funnel import Funnel
from tamis.funnel.inventory import Inventory
from tamis.funnel.log import ads_of, logged_ads, request_starts
from tamis.funnel.ranker import AdFeatures
from tamis.funnel.request import Request
from tamis.funnel.trace import Trace

_ROWS_AT_A_TIME = 65_536


@runtime_checkable
class PredictsRows(Protocol):
    """A stage that ranks what it is given, such as a ``RankerStage``; one that searches does not.

    The last stage of a funnel must be one. The one before it, if it is one, is an early stage.
    """

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it predicts; the binary ones are distilled."""
        ...

    def predict_rows(
        self, rows: Batch, ads: NDArray[np.int64]
    ) -> Mapping[str, NDArray[np.float64]]:
        """Predictions (P,) by task for P rows as they are, each of an ad."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class CascadeSampling:
    """Which candidates stand beside the impressions."""

    requests: int = 4000
    """Requests of the training split that other candidates are taken from, spread evenly; of the
    other splits as large a share. At least 1."""
    scored: int = 16
    """Candidates of each that the earlier stages keep, drawn at random. At least 1."""
    rejected: int = 8
    """Candidates of each that they do not keep. Of an early stage's those that it turned away, half
    just below its cut and half drawn at random from further down; without one any other ads, drawn
    at random. At least 0."""
    weight_cap: float = 5.0
    """Largest weight of a candidate, which otherwise is 1 over its chance of being drawn; it is
    multiplied by the mean weight of the request's impressions."""
    seed: int = 0
    """Decides the draws. At least 0."""

    def __post_init__(self) -> None:
        least = {"requests": 1, "scored": 1, "rejected": 0, "weight_cap": 1, "seed": 0}
        for name, floor in least.items():
            if not getattr(self, name) >= floor:
                raise ConfigError(
                    f"CascadeSampling.{name}: must be at least {floor}, got {getattr(self, name)}."
                )


def write_cascade(
    blueprint: Blueprint,
    dataset: Dataset,
    out: Path,
    *,
    sampling: CascadeSampling,
    reads: Encoders | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Write a dataset that an early stage learns from.

    Labels and weights are those of the log; candidates that were not shown have no labels. For each
    binary task a task ``final_<task>`` distils the final stage. Of impressions of the training
    split there is no prediction to distil, as the final stage has seen their labels; of later
    splits there is. The fields of a candidate's ad are those of its last row before the request, in
    the order of splits and rows; of an ad that was first shown later, those of its first row.

    Beside the rows stand their pool and sampling rate (``Split.role``), which no model reads. The
    weight, which training reads, is one over the rate, at most ``sampling.weight_cap``, times the
    mean weight of the request's impressions.

    Args:
        blueprint: Stages that find candidates, and a final one that predicts.
        dataset: What the final stage was trained on.
        out: Folder that does not exist yet, or is empty.
        sampling: Which candidates stand beside the impressions.
        reads: Encoders of the fields that the early stage reads, such as ``Encoders.without`` the
            costly ones; None: of all. Their tasks play no part.
        progress: Told how many requests are done, of how many.

    Returns:
        The dataset, of the same splits, and of the fields and encoders that are read.

    Raises:
        ConfigError: There is no stage before the last one, or that predicts nothing.
        DataError: ``out`` is taken, a role is missing, a stage fell back, a row has no request, or
            rows of one stand apart.
        SchemaError: A stage, or the early one to be, reads what the dataset lacks.

    Source:
        Wang et al., arXiv:2307.11096: an early stage learns from candidates without impression too,
        with the final stage's predictions as tasks of their own.

    Differs from the source:
        The paper does not say which candidates it takes, nor how they weigh; pools, halves and
        weights are those of the reproduction ``early-stage``. There rows of all pools carry the
        final stage's predictions, as it learnt from earlier days. Here it may have learnt from the
        very log, so that impressions of the training split have none. Predictions of the others are
        made afterwards, not logged. Without an early stage nothing orders what the retrieval left
        out, and no half of the rejected is just below a cut.
    """
    encoders = Encoders.load(dataset.encoders_path, dataset.schema)
    if len(blueprint.stages) < 2:
        raise ConfigError(
            "cascade: must have a stage before the final one, got one stage in all. Add a "
            "retrieval."
        )
    final = blueprint.build(encoders).steps[-1].stage
    if not isinstance(final, PredictsRows):
        raise ConfigError(
            f"cascade: the last stage must predict, got {blueprint.stages[-1].budget.name!r}, "
            f"which predicts nothing. Put a ranker last."
        )
    before_final = replace(blueprint, stages=blueprint.stages[:-1])
    earlier = before_final.without_time_limits().build(encoders)
    names = tuple(task.name for task in final.tasks if task.kind == "binary")
    part = encoders if reads is None else reads
    select = InputSelection(encoders, part, where="cascade")
    schema = _schema(replace(dataset.schema, fields=part.schema.fields), names)
    of_part = dataset.spec if reads is None else replace(reads.spec, tasks=dataset.spec.tasks)
    spec = replace(of_part, tasks=schema.tasks)
    train_rows = dataset.split("train").num_rows
    chosen = {
        name: _chosen(dataset.split(name), sampling.requests / train_rows)
        for name in dataset.split_names
    }
    total, done = sum(len(firsts) for firsts, _ in chosen.values()), 0
    with DatasetWriter(out, schema, spec) as writer:
        latest = _LatestAds.of(blueprint.inventory, dataset)
        if reads is None:
            artifacts.copy_files(dataset.encoders_path, writer.encoders_path)
        else:
            reads.save(writer.encoders_path)
        writer.copy_vectors(dataset)
        for number, (name, (firsts, ends)) in enumerate(chosen.items()):
            split = dataset.split(name)
            roles, weights = _roles(split), split.weights()
            source = _Source(
                roles=roles,
                rows=split.rows(),
                spec=of_part,
                select=select,
                codes=blueprint.inventory.codes,
                ads=ads_of(roles["item"], blueprint.inventory.codes),
                weights=np.ones(split.num_rows, np.float32) if weights is None else weights,
                earlier=earlier,
                final=final,
                tasks=names,
                generator=np.random.default_rng([sampling.seed, number]),
                sampling=sampling,
            )
            for start, batch in _batches(split, dataset.spec):
                writer.append(name, source.impressions(start, batch, is_seen=name == "train"))
                within = slice(*np.searchsorted(firsts, [start, start + batch.num_rows]))
                before = latest.before_each(batch, source.ads[start : start + batch.num_rows])
                if len(firsts[within]):
                    found = source.candidates(firsts[within], ends[within], start, batch, before)
                    writer.append(name, found)
                done += len(firsts[within])
                if progress is not None:
                    progress(done, total)
        return writer.finish(
            {
                "split": dataset.manifest.get("split", {}),
                "report": dataset.manifest.get("report", {}),
            }
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Source:
    """Rows of one split, and what the stages say of candidates that it does not show."""

    roles: dict[str, NDArray[np.int64]]
    rows: NDArray[np.int64]
    spec: InputSpec
    """What is read; tasks are those of the split."""
    select: InputSelection
    """Makes what is read of the split's inputs."""
    codes: NDArray[np.int64]
    ads: NDArray[np.int64]
    """Ad row of each row; -1 where the inventory has no such ad."""
    weights: NDArray[np.float32]
    """Weight of each row."""
    earlier: Funnel
    final: PredictsRows
    tasks: tuple[str, ...]
    generator: np.random.Generator
    sampling: CascadeSampling

    def impressions(self, start: int, batch: Batch, *, is_seen: bool) -> EncodedRows:
        """Rows of the log as they are, with the final stage's predictions of them if unseen."""
        at = np.arange(start, start + batch.num_rows)
        final = {task: np.full(len(at), np.nan, np.float32) for task in self.tasks}
        if not is_seen:
            rows = np.flatnonzero(self.ads[at] >= 0)
            # An ad's fields change: what is distilled belongs to those that the row has.
            predictions = self.final.predict_rows(
                batch.take(torch.from_numpy(rows)), self.ads[at[rows]]
            )
            for task, values in final.items():
                values[rows] = predictions[task]
        pool, rate = np.full(len(at), IMPRESSED), np.ones(len(at))
        return self._encoded(at, batch, final, self.weights[at], pool, rate)

    def candidates(
        self,
        firsts: NDArray[np.int64],
        ends: NDArray[np.int64],
        start: int,
        batch: Batch,
        before: "_AdsBefore",
    ) -> EncodedRows:
        """Rows of other candidates of some requests, which begin in the batch."""
        requests = batch.take(torch.from_numpy(firsts - start))
        drawn, of_request = [], np.empty(len(firsts), np.float32)
        asked = self._requests(self.roles["request"][firsts], requests)
        answers = self.earlier.answer_each(asked)
        for at, (first, end, answer) in enumerate(zip(firsts, ends, answers, strict=True)):
            shown, of_request[at] = self.ads[first:end], self.weights[first:end].mean()
            trace, seen = answer
            drawn.append(self._draw(trace, seen[-1], shown[shown >= 0]))
        rows = np.repeat(np.arange(len(drawn)), [len(ads) for ads, _, _ in drawn])
        ads, pool, rate = (np.concatenate(columns) for columns in zip(*drawn, strict=True))
        places = torch.from_numpy(before.places(ads, firsts[rows] - start))
        pairs = before.features.pairs(requests, torch.from_numpy(rows), places)
        predictions = self.final.predict_rows(pairs, ads)
        log = CascadeLog(
            request=self.roles["request"][firsts[rows]],
            candidate=self.codes[ads],
            pool=pool,
            sampling_rate=rate,
            labels={},
            final={task: predictions[task].astype(np.float32) for task in self.tasks},
        )
        unknown = replace(pairs, labels=torch.full_like(pairs.labels, torch.nan))
        weights = log.weights(cap=self.sampling.weight_cap) * of_request[rows]
        found = self._encoded(firsts[rows], unknown, log.final, weights, pool, rate)
        return replace(found, roles={**found.roles, "item": log.candidate})

    def _requests(self, numbers: NDArray[np.int64], features: Batch) -> Iterator[Request]:
        for at, number in enumerate(numbers.tolist()):
            # Everybody is a user of his own, as a stage may remember what it made of one.
            yield Request(
                request_id=number,
                user=~number,
                time_micros=0,
                slots=1,
                features=features.take(torch.tensor([at])),
            )

    def _draw(
        self, trace: Trace, found: Candidates, shown: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int8], NDArray[np.float64]]:
        """Ads that were not shown, the pool of each, and its chance of being drawn."""
        for stage in trace.stages:
            if stage.fallback:
                raise DataError(
                    f"cascade: stage {stage.name!r} must score the candidates of request "
                    f"{trace.request_id}, got the fallback {stage.fallback!r}. Mend the stage."
                )
        kept = np.setdiff1d(trace.stages[-1].ads.astype(np.int64), shown)
        scored = self._drawn(kept, self.sampling.scored)
        if isinstance(self.earlier.steps[-1].stage, PredictsRows):
            order = found.best(len(found), seed=trace.request_id).ads
            rejected = self._below_the_cut(order[~np.isin(order, np.concatenate([kept, shown]))])
        else:
            others = np.setdiff1d(np.arange(len(self.codes)), np.concatenate([kept, shown]))
            rejected = self._drawn(others, self.sampling.rejected)
        sizes = [len(scored[0]), len(rejected[0])]
        ads, rates = (np.concatenate(columns) for columns in zip(scored, rejected, strict=True))
        return ads, np.repeat(np.array([SCORED, REJECTED]), sizes), rates

    def _drawn(
        self, open_ads: NDArray[np.int64], wanted: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Some ads, drawn uniformly, and the chance of each."""
        count = min(wanted, len(open_ads))
        ads = self.generator.choice(open_ads, count, replace=False)
        return ads, np.full(count, count / max(len(open_ads), 1))

    def _below_the_cut(
        self, rejected: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Some of the ads that an early stage turned away, in its order, and their chances."""
        if not self.sampling.rejected:
            return self._drawn(rejected, 0)
        found = sample_rejected(
            np.zeros(len(rejected), np.int64),
            np.arange(1, len(rejected) + 1),
            num_kept=1,  # who was kept is left out, and counts as the rank before the first
            per_request=self.sampling.rejected,
            seed=int(self.generator.integers(2**63)),
        )
        return rejected[found.rows], found.sampling_rate

    def _encoded(
        self,
        at: NDArray[np.int64],
        batch: Batch,
        final: Mapping[str, NDArray[np.float32]],
        weights: NDArray[np.float32],
        pool: NDArray[np.integer[Any]],
        rate: NDArray[np.float64],
    ) -> EncodedRows:
        """The rows of a batch, each with the roles of a row of the split."""
        spec, labels = self.spec, batch.labels.numpy()
        batch = self.select(batch)
        sizes = spec.num_rows_by_table
        ids = {
            item.name: _as_stored(batch.ids[:, column].numpy(), sizes[item.table])
            for column, item in enumerate(spec.categorical)
        }
        sequences = {}
        for group in spec.sequences:
            history = batch.sequences[group.name]
            largest = max(sizes[table] for table in group.tables)
            values = _as_stored(history.values.numpy(), largest)
            sequences[group.name] = (values, history.offsets.diff().numpy())
        return EncodedRows(
            row=self.rows[at],
            numeric={name: batch.numeric[:, i].numpy() for i, name in enumerate(spec.numeric)},
            ids=ids,
            sequences=sequences,
            labels={
                **{task.name: labels[:, i] for i, task in enumerate(spec.tasks)},
                **{FINAL_PREFIX + task: values for task, values in final.items()},
            },
            roles={
                **{name: codes[at] for name, codes in self.roles.items()},
                POOL: pool,
                RATE: rate,
            },
            weights=weights,
        )


class _LatestAds:
    """Item fields of all N ads, as each ad's last row before a place of the log has them.

    What became of an ad later, its click rate say, would tell of labels. An ad that was not shown
    before has the fields of its first row.
    """

    def __init__(self, features: AdFeatures, spec: InputSpec) -> None:
        """Start with some fields of each ad."""
        self._features, self._spec = features, spec

    @staticmethod
    def of(inventory: Inventory, dataset: Dataset) -> "_LatestAds":
        """Those of an inventory before the first row of a dataset."""
        schema, spec = dataset.schema, dataset.spec
        splits = [dataset.split(name) for name in dataset.split_names]
        first = logged_ads(splits, schema, spec, of="first")
        known = AdFeatures.of_rows(inventory.rows, schema, spec)
        found = _LatestAds(known, spec)
        rows = AdFeatures.of_rows(first.rows, schema, spec).of_ads(torch.arange(len(first.codes)))
        found._go_on(rows, ads_of(first.codes, inventory.codes))
        return found

    def before_each(self, batch: Batch, ads: NDArray[np.int64]) -> "_AdsBefore":
        """The ads before each of the next rows, which show some of them; -1 is none of them."""
        items = side_batch(batch, self._spec, "item")
        return self._go_on(replace(items, labels=items.labels[:, :0]), ads)

    def _go_on(self, items: Batch, ads: NDArray[np.int64]) -> "_AdsBefore":
        num_ads = len(self._features)
        table = concatenate([self._features.of_ads(torch.arange(num_ads)), items])
        shown = np.flatnonzero(ads >= 0)
        found = _AdsBefore(
            features=self._features.of_inputs(table),
            keys=np.sort(ads[shown] * items.num_rows + shown),
            num_ads=num_ads,
            num_rows=items.num_rows,
        )
        every = np.arange(num_ads)
        after = table.take(torch.from_numpy(found.places(every, np.full(num_ads, len(ads)))))
        self._features = self._features.of_inputs(after)
        return found


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _AdsBefore:
    """Item fields of N ads before some rows, and after them those that these rows have."""

    features: AdFeatures
    keys: NDArray[np.int64]
    """ad * ``num_rows`` + row, in order."""
    num_ads: int
    num_rows: int

    def places(self, ads: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in ``features`` each of some ads stands as it was before a row."""
        last = np.searchsorted(self.keys, ads * self.num_rows + rows) - 1
        key = self.keys[np.maximum(last, 0)] if len(self.keys) else np.full(len(ads), -1)
        is_shown = (last >= 0) & (key // self.num_rows == ads)
        return np.where(is_shown, self.num_ads + key % self.num_rows, ads)


def _schema(schema: Schema, final: tuple[str, ...]) -> Schema:
    """That of a cascade's log, but for request and item, which are of the log's own columns."""
    found = cascade_schema(schema, final=final)
    return replace(found, roles=replace(schema.roles, weight=WEIGHT))


def _chosen(split: Split, share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First rows and ends of requests that are spread evenly over a split."""
    if not (split.columns.has("role:request") and split.columns.has("role:item")):
        raise DataError(
            f"split {split.name!r}: must have the roles 'request' and 'item', got none of one. "
            f"Name their columns under [roles] in the schema and ingest the log anew."
        )
    starts = request_starts(split)
    ends = np.append(starts[1:], split.num_rows)
    count = min(len(starts), max(1, round(share * split.num_rows)))
    picked = np.linspace(0, len(starts) - 1, count).astype(np.int64)
    return starts[picked], ends[picked]


def _batches(split: Split, spec: InputSpec) -> Iterator[tuple[int, Batch]]:
    start = 0
    for batch in Loader(split, spec, batch_size=_ROWS_AT_A_TIME, shuffle=False).epoch(0):
        yield start, batch
        start += batch.num_rows


def _roles(split: Split) -> dict[str, NDArray[np.int64]]:
    found = {name: split.role(name) for name in ("request", "item", "user", "time")}
    return {name: codes for name, codes in found.items() if codes is not None}


def _as_stored(rows: NDArray[Any], table_rows: int) -> NDArray[Any]:
    """Table rows in the type in which a dataset keeps them."""
    return rows.astype(np.int32 if table_rows < 2**31 else np.int64)
