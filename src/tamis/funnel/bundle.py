"""What is deployed: a funnel in one folder, which is whole, unaltered and of one publishing.

manifest.json   release, contents of every part, versions of the libraries; written last
funnel/         funnel.json: stages, budgets, reserve price, weights of the total value
inputs/         schema.toml and encoders/
ads/            attributes and features of all ads
stages/<name>/  what the stage's plan wrote: weights, config, tasks, calibration, an index

Each part is sealed by a manifest of its own, which names the release that it was published in. The
release is a hash of the contents of all parts, so a part of another publishing gives itself away.
"""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamis import artifacts, config
from tamis.data.encoders import Encoders
from tamis.data.schema import load_schema
from tamis.errors import ArtifactError, ConfigError
from tamis.funnel.blueprint import Blueprint, Budget, PlannedStage
from tamis.funnel.funnel import Funnel
from tamis.funnel.inventory import read_inventory, write_inventory
from tamis.funnel.online import OnlineFeatures
from tamis.funnel.plans import PLANS
from tamis.funnel.value import ValueWeights

BUNDLE_VERSION = 1
_KIND, _PART_KIND = "bundle", "part of a bundle"
_FUNNEL, _INPUTS, _ADS, _STAGES = "funnel", "inputs", "ads", "stages"
_MADE_WITH = ("tamis", "torch", "numpy", "safetensors")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Bundle:
    """A published funnel as it was read."""

    release: str
    """Name of its contents, 64 hexadecimal digits."""
    blueprint: Blueprint
    """What is in it."""


def write_bundle(path: Path, blueprint: Blueprint) -> str:
    """Publish a funnel as a folder that appears whole, or not at all.

    Args:
        path: Folder that does not exist yet, or is empty.
        blueprint: What to publish; it must make a funnel.

    Returns:
        The release: 64 hexadecimal digits that name the contents.

    Raises:
        ConfigError: The stages do not make a funnel, or there is no field for an online feature.
        DataError: ``path`` is taken.
        RunInUseError: Another process is writing ``path``.
        SchemaError: A stage reads what requests lack.
        StorageError: The disk is full or the folder cannot be written.
    """
    blueprint.build()
    blueprint.online.check(blueprint.encoders.schema)
    artifacts.check_free(path)
    with artifacts.draft_folder(path) as draft, artifacts.disk_errors(path):
        parts = _write_parts(draft, blueprint)
        contents = {part: _contents(draft / part) for part in parts}
        release = config.fingerprint(contents)
        _seal(draft, contents, release)
        artifacts.move_into_place(draft, path)
    return release


def read_bundle(path: Path) -> Bundle:
    """Read a published funnel; every file is hashed first.

    Raises:
        ArtifactError: The folder is no bundle of this version, a file is missing or altered, or
            parts were published apart from one another; these are named.
    """
    release = _verified_release(path)
    record = artifacts.read_json(path / _FUNNEL / "funnel.json")
    schema = load_schema(path / _INPUTS / "schema.toml")
    try:
        stages = tuple(
            PlannedStage(
                budget=config.from_table(Budget, stage["budget"], where="stage"),
                plan=PLANS[stage["kind"]].read(path / _STAGES / stage["budget"]["name"]),
            )
            for stage in record["stages"]
        )
        weights = config.from_table(ValueWeights, record["value"], where="value")
        reserve = float(record["reserve"])
        # Bundles published before there were any do not say so; nor until when they learnt.
        online = config.from_table(OnlineFeatures, record.get("online", {}), where="online")
        until = record.get("trained_until")
        trained_until = None if until is None else int(until)
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path / _FUNNEL}: must describe stages that this tamis knows, got {error}. Read it "
            f"with the tamis that published it, or publish anew."
        ) from error
    blueprint = Blueprint(
        encoders=Encoders.load(path / _INPUTS / "encoders", schema),
        inventory=read_inventory(path / _ADS),
        weights=weights,
        stages=stages,
        reserve=reserve,
        online=online,
        trained_until=trained_until,
    )
    return Bundle(release=release, blueprint=blueprint)


def load_bundle(path: Path) -> Funnel:
    """The funnel of a bundle: it gives the same bits as the one that was published.

    Raises:
        ArtifactError: As :func:`read_bundle` does.
    """
    return read_bundle(path).blueprint.build()


def _verified_release(path: Path) -> str:
    """The release, after every file was hashed and every part was found to be of it."""
    manifest = artifacts.read_manifest(path, kind=_KIND, version=BUNDLE_VERSION, verify=True)
    release, contents = str(manifest.get("release")), manifest.get("parts")
    if not isinstance(contents, dict) or config.fingerprint(contents) != release:
        raise ArtifactError(
            f"{path / artifacts.MANIFEST}: must name the parts of its release {release[:12]}, got "
            f"others. It was altered; publish anew."
        )
    found = {
        part: artifacts.read_manifest(
            path / part, kind=_PART_KIND, version=BUNDLE_VERSION, verify=True
        )
        for part in contents
    }
    strangers = {
        part: str(inner.get("release"))
        for part, inner in found.items()
        if inner.get("release") != release
    }
    if strangers:
        _refuse_mixture(path, release, strangers, [part for part in found if part not in strangers])
    for part, inner in found.items():
        hashes = {name: entry["sha256"] for name, entry in inner["files"].items()}
        if hashes != contents[part]:
            raise ArtifactError(
                f"{path / part}: must hold what was published, got other contents under the same "
                f"release. It was altered; publish anew."
            )
    return release


def _refuse_mixture(path: Path, release: str, strangers: dict[str, str], others: list[str]) -> None:
    apart = ", ".join(f"{part} of release {other[:12]}" for part, other in strangers.items())
    rest = ", ".join(others) or "nothing"
    raise ArtifactError(
        f"{path}: must hold parts of one publishing, got {apart} beside {rest} of release "
        f"{release[:12]}. Put back the parts that were published together, or publish anew."
    )


def _write_parts(draft: Path, blueprint: Blueprint) -> list[str]:
    """Write every part and give their folders, relative to the draft's."""
    names = [stage.budget.name for stage in blueprint.stages]
    parts = [_FUNNEL, _INPUTS, _ADS, *(f"{_STAGES}/{name}" for name in names)]
    for part in parts:
        (draft / part).mkdir(parents=True)
    record = {
        "stages": [
            {"budget": config.to_table(stage.budget), "kind": stage.plan.kind}
            for stage in blueprint.stages
        ],
        "reserve": blueprint.reserve,
        "value": config.to_table(blueprint.weights),
        "online": config.to_table(blueprint.online),
        "trained_until": blueprint.trained_until,
    }
    artifacts.write_json(draft / _FUNNEL / "funnel.json", record)
    schema = blueprint.encoders.schema
    artifacts.write_text(draft / _INPUTS / "schema.toml", schema.to_toml())
    (draft / _INPUTS / "encoders").mkdir()
    blueprint.encoders.save(draft / _INPUTS / "encoders")
    write_inventory(draft / _ADS, blueprint.inventory)
    for stage in blueprint.stages:
        stage.plan.write(draft / _STAGES / stage.budget.name)
    return parts


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _contents(folder: Path) -> dict[str, str]:
    """SHA-256 of each file by its name."""
    return {
        path.relative_to(folder).as_posix(): artifacts.sha256_file(path) for path in _files(folder)
    }


def _seal(draft: Path, contents: dict[str, dict[str, str]], release: str) -> None:
    for part in contents:
        artifacts.write_manifest(
            draft / part,
            kind=_PART_KIND,
            version=BUNDLE_VERSION,
            files=_files(draft / part),
            payload={"release": release},
        )
    # The last manifest lists no files, and must not stand without those that do.
    artifacts.sync_files(draft, [draft / part / artifacts.MANIFEST for part in contents])
    payload: dict[str, Any] = {
        "release": release,
        "made_with": {name: importlib.metadata.version(name) for name in _MADE_WITH},
        "parts": contents,
    }
    artifacts.write_manifest(draft, kind=_KIND, version=BUNDLE_VERSION, files=[], payload=payload)
