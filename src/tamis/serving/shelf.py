"""The folder of bundles that a server may change to; a request names a release, never a path."""

from pathlib import Path

from tamis import artifacts
from tamis.errors import ArtifactError
from tamis.funnel.bundle import Bundle, read_bundle
from tamis.serving.refused import RefusedError


def take_bundle(folder: Path, release: str) -> Bundle:
    """Read the bundle of a release, every file of which is hashed first.

    Args:
        folder: Bundles lie in it, each a folder of its own.
        release: Name of the bundle's contents.

    Raises:
        ArtifactError: The bundle is damaged, or was changed while it was read.
        RefusedError: No bundle in the folder says that it is of this release.
    """
    for path in _inside(folder):
        if _says(path) == release:
            return _read(path, release)
    raise RefusedError(
        404, "body.release", "must be of a bundle in the server's folder. Publish it there."
    )


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        # It was there when the server started.
        return []


def _read(path: Path, release: str) -> Bundle:
    try:
        found = read_bundle(path)
    except OSError as error:
        raise ArtifactError(
            f"{path}: must be readable, got {error.strerror or error}. Publish it again."
        ) from error
    if found.release != release:
        raise ArtifactError(
            f"{path}: must be of release {release[:12]}, got {found.release[:12]}, as it was "
            f"published anew meanwhile. Ask again."
        )
    return found


def _says(path: Path) -> str:
    """The release that a folder claims to be; empty where it is no bundle that can be read."""
    try:
        if artifacts.kind_of(path) != "bundle":
            return ""
        return str(artifacts.read_json(path / artifacts.MANIFEST).get("release", ""))
    except (ArtifactError, OSError):
        return ""
