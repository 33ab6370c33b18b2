"""Funnels: publish runs as one bundle, replay it, let it serve the simulated market."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis import artifacts
from tamis.api.datasets import open_dataset
from tamis.api.folders import next_folder
from tamis.data.dataset import Dataset
from tamis.data.market import MarketSummary

if TYPE_CHECKING:
    from tamis.funnel.report import Scope
    from tamis.publishing.cascade import CascadeSampling
    from tamis.publishing.make import Publication


def is_bundle(path: Path | str) -> bool:
    """Whether a folder is a published bundle."""
    return artifacts.kind_of(Path(path)) == "bundle"


def publish(recipe: Path | str, out: Path | str) -> "Publication":
    """Publish finished runs as a funnel.

    Args:
        recipe: TOML file with stages, budgets, ads and weights of the value; see
            :class:`tamis.publishing.recipe.FunnelRecipe`.
        out: Folder of the bundle; must not exist or be empty.

    Raises:
        ArtifactError: A run is unfinished, or a run or the dataset is damaged.
        ConfigError: A setting is wrong, or the stages do not make a funnel.
        DataError: ``out`` is taken, or ads or calibrations cannot be made.
        SchemaError: A stage reads fields that the dataset does not have, or encodes otherwise.
        StorageError: The disk is full or ``out`` cannot be written.
    """
    from tamis.publishing.make import publish as _publish

    return _publish(Path(recipe), Path(out))


def write_cascade(
    bundle: Path | str,
    data: Dataset | Path | str,
    out: Path | str,
    *,
    sampling: "CascadeSampling | None" = None,
    without: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Write what an early stage learns from, with what a funnel says of other ads.

    Args:
        bundle: Folder of a bundle: retrieval, then a final stage, perhaps an early stage between.
        data: What its final stage was trained on, or the folder of it.
        out: Folder of the new dataset.
        sampling: Which candidates stand beside the impressions; None for the defaults of
            :class:`tamis.publishing.cascade.CascadeSampling`.
        without: Names of fields that the early stage shall not read, such as costly histories.
        progress: Told how many requests are done, of how many.

    Raises:
        TamisError: As :func:`tamis.publishing.cascade.write_cascade` does, or the disk is full.
    """
    from tamis.data.encoders import Encoders
    from tamis.funnel.bundle import read_bundle
    from tamis.publishing.cascade import CascadeSampling
    from tamis.publishing.cascade import write_cascade as _write_cascade

    dataset = data if isinstance(data, Dataset) else open_dataset(data, verify=True)
    blueprint = read_bundle(Path(bundle)).blueprint
    reads = None
    if without:
        reads = Encoders.load(dataset.encoders_path, dataset.schema).without(without)
    with artifacts.disk_errors(Path(out)):
        return _write_cascade(
            blueprint,
            dataset,
            Path(out),
            sampling=sampling or CascadeSampling(),
            reads=reads,
            progress=progress,
        )


def replay(
    bundle: Path | str,
    data: Dataset | Path | str,
    *,
    split: str = "test",
    scope: "Scope | None" = "all",
    every: int = 1,
    limit: int | None = None,
    out: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Replay a split's requests through a published funnel, and write what it did.

    Args:
        bundle: Folder of the bundle.
        data: A dataset with requests, or its folder, whose files are then verified.
        split: Split to replay.
        scope: Which candidates the last stage scores for comparison; None leaves that out.
        every: One request in so many is compared.
        limit: Requests to stop after; None for all.
        out: Folder for ``replay.json`` and ``report.html``; a new one below ``replays/`` if absent.
        progress: Told how many requests are done, of how many.

    Returns:
        The folder, and the record that was written.

    Raises:
        DataError: ``out`` is a file, a run or another artifact.
        TamisError: As :func:`tamis.funnel.bundle_replay.replay_bundle` does, or the disk is full.
    """
    from tamis.funnel.bundle_replay import replay_bundle
    from tamis.reports.replay_report import write_replay

    if out is not None:
        artifacts.check_takes_report(Path(out))  # before the work, not after it
    dataset = data if isinstance(data, Dataset) else open_dataset(data, verify=True)
    record = replay_bundle(
        Path(bundle),
        dataset,
        split=split,
        scope=scope,
        every=every,
        limit=limit,
        progress=progress,
    )
    folder = next_folder("replays", Path(bundle).resolve().name) if out is None else Path(out)
    with artifacts.disk_errors(folder):
        write_replay(record, folder)
    return folder, record


def simulate_by_funnel(
    bundle: Path | str,
    rows: int,
    out: Path | str,
    *,
    seed: int = 0,
    first_day: int = 0,
    days: int | None = None,
    judge_every: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> MarketSummary:
    """Let a published funnel serve the users of the simulated market, and write the log.

    See :func:`tamis.funnel.bundle_policy.serve_market`, which takes the same arguments.

    Raises:
        TamisError: As it does, or the disk is full.
    """
    from tamis.funnel.bundle_policy import serve_market

    with artifacts.disk_errors(Path(out)):
        return serve_market(
            Path(bundle),
            Path(out),
            rows=rows,
            seed=seed,
            first_day=first_day,
            days=days,
            judge_every=judge_every,
            progress=progress,
        )


def ab_test(
    control: Path | str,
    treatment: Path | str,
    rows: int,
    *,
    first_day: int,
    seed: int = 0,
    days: int | None = None,
    judge_every: int = 100,
    out: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Compare two published funnels by an A/B test in the simulated market.

    Args:
        control: Bundle that was trained on the market of the same rows and seed.
        treatment: Another one, as well.
        rows: Impressions of the whole market.
        first_day: Day on which the test begins, after those that the funnels learnt from.
        seed: Seed of the market; also says which half of the users see the treatment.
        days: Length of the test; None for all days that are left.
        judge_every: One request in so many is asked what each stage truly lost.
        out: Folder for ``ab-test.json`` and ``report.html``; a new one below ``ab-tests/`` if
            absent.
        progress: Told how many hours are over, of how many.

    Returns:
        The folder, and the record that was written.

    Raises:
        DataError: ``out`` is a file, a run or another artifact.
        TamisError: As :func:`tamis.funnel.bundle_ab_test.ab_test_bundles` does, or the disk is
            full.
    """
    from tamis.funnel.bundle_ab_test import ab_test_bundles
    from tamis.reports.ab_report import write_ab_test

    if out is not None:
        artifacts.check_takes_report(Path(out))
    record = ab_test_bundles(
        Path(control),
        Path(treatment),
        rows=rows,
        first_day=first_day,
        seed=seed,
        days=days,
        judge_every=judge_every,
        progress=progress,
    )
    folder = next_folder("ab-tests", Path(treatment).resolve().name) if out is None else Path(out)
    with artifacts.disk_errors(folder):
        write_ab_test(record, folder)
    return folder, record
