"""A published funnel against a logged split: what is written down of it."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tamis.data.dataset import Dataset
from tamis.data.encoders import Encoders
from tamis.errors import ConfigError
from tamis.funnel.bundle import read_bundle
from tamis.funnel.funnel import Funnel
from tamis.funnel.log import count_requests, logged_requests
from tamis.funnel.plans import RemembersAds
from tamis.funnel.replay import Reference, replay
from tamis.funnel.report import Scope
from tamis.funnel.request import Request
from tamis.funnel.tally import PredictsPairs


def replay_bundle(
    path: Path,
    dataset: Dataset,
    *,
    split: str,
    scope: Scope | None,
    every: int = 1,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Answer a split's requests with a bundle's funnel, and compare it with its last stage.

    Args:
        path: The bundle.
        dataset: A log with requests, encoded as the bundle's models know it.
        split: Which of its splits.
        scope: Which candidates the last stage scores for comparison; None leaves that out.
        every: One request in so many is compared. At least 1.
        limit: Requests to stop after; None for all.
        progress: Told how many requests are done, of how many.

    Returns:
        The report in its JSON form; beside it ``release``, ``budgets`` by stage, ``dataset`` and
        ``split``, and ``unknown_impressions``, those of ads that the bundle does not have, which no
        model could be compared on.

    Raises:
        ArtifactError: The bundle is damaged, or of several publishings.
        ConfigError: The last stage predicts nothing to compare with, or a number is out of range.
        DataError: The split lacks a role, or has no request.
        SchemaError: The dataset lacks a field of the bundle, or encodes it otherwise.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit: must be at least 1 request, got {limit}. Leave it out for all.")
    bundle = read_bundle(path)
    blueprint = bundle.blueprint
    funnel = blueprint.build(Encoders.load(dataset.encoders_path, dataset.schema))
    rows = dataset.split(split)
    total = count_requests(rows)
    end = total if limit is None else min(limit, total)
    unknown = 0

    def counted_requests() -> Iterator[Request]:
        nonlocal unknown
        codes = blueprint.inventory.codes
        stream = logged_requests(rows, dataset.spec, codes, may_be_unknown=True)
        for request in itertools.islice(stream, end):
            # Every row of a log is a slot; what is not among those shown is of another ad.
            unknown += request.slots - len(request.shown.ads if request.shown else ())
            yield request

    report = replay(
        funnel,
        counted_requests(),
        reference=None if scope is None else _reference(funnel, scope, every),
        heads=heads_of(funnel),
        progress=None if progress is None else lambda done: progress(done, end),
    )
    return {
        "release": bundle.release,
        "budgets": {
            stage.budget.name: {
                "kind": stage.plan.kind,
                "keep": stage.budget.keep,
                "budget_ms": stage.budget.budget_ms,
            }
            for stage in blueprint.stages
        },
        "dataset": dataset.fingerprint,
        "split": split,
        "unknown_impressions": unknown,
        **report.to_json(),
    }


def heads_of(funnel: Funnel) -> Mapping[str, PredictsPairs]:
    """The stages of a funnel that predict, by name."""
    return {step.name: step.stage for step in funnel.steps if isinstance(step.stage, PredictsPairs)}


def _reference(funnel: Funnel, scope: Scope, every: int) -> Reference:
    last = funnel.steps[-1]
    if not isinstance(last.stage, PredictsPairs):
        raise ConfigError(
            f"reference: the last stage must predict what ads are worth, got {last.name!r}, which "
            f"predicts nothing. Publish a ranker last, or compare with none."
        )
    # Without its time-out: what it would say of every candidate, however long that takes. And past
    # its cache, where so many ads would put out those that requests come back to.
    stage = last.stage.stage if isinstance(last.stage, RemembersAds) else last.stage
    return Reference(stage=stage, scope=scope, every=every)
