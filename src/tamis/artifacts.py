"""How tamis writes to disk: atomically, hashed, versioned; and how it checks what it reads.

An artifact is a folder with a ``manifest.json`` that names its kind, its version and the SHA-256 of
every file in it. The manifest is written last, so a folder without one was never finished.
"""
# ruff: noqa: ANN401  (payloads are JSON values)

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tamis.errors import ArtifactError, DataError, RunInUseError, StorageError

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCKLESS = (errno.ENOLCK, errno.EOPNOTSUPP)
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
_WRONG_KIND = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and move it there once the block has succeeded.

    The content is synced before the move, so after a crash the old file or the new one is there,
    whole. If the block raises, the temporary file is removed and ``path`` is as it was.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
        ArtifactError: ``path`` is a folder, or runs through a file.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        move_into_place(temporary, path)
    except OSError as error:
        raise _as_artifact_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # What went wrong before is to be told.
            temporary.unlink(missing_ok=True)


def move_into_place(draft: Path, path: Path) -> None:
    """Move a finished file or folder to its name, and wait until the move is on the disk.

    A file's content is there before that; the files of a folder must be, as :func:`write_manifest`
    and :func:`sync_files` leave them.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
        ArtifactError: ``path`` is a folder and the draft a file, or the reverse.
    """
    with disk_errors(path):
        _sync(draft)
        os.replace(draft, path)
        for folder in {draft.parent, path.parent}:
            _sync(folder)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into an error that names the place and says what to do.

    Args:
        path: What the block works on, for the message.

    Raises:
        StorageError: The disk is full or the place cannot be written.
        ArtifactError: A file stands where a folder must be, or a folder where a file must be.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (*_FULL, *_READ_ONLY, *_WRONG_KIND):
            raise
        raise _as_artifact_error(path, error) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file atomically.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    write_bytes(path, text.encode())


def write_json(path: Path, payload: Any) -> None:
    """Write indented JSON atomically; keys keep their order, NaN is refused.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
        ValueError: The payload holds NaN or an infinity, which JSON has no word for.
    """
    write_text(path, json.dumps(payload, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON that tamis wrote.

    Raises:
        ArtifactError: The file is missing, cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path}: must exist, got no such file. Check the path, or make it anew."
        ) from error
    except OSError as error:
        raise ArtifactError(
            f"{path}: must be a readable file, got {error.strerror}. Check the path."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{path}: must be JSON, got {error}. It was cut short or altered; make it anew."
        ) from error


def copy_files(source: Path, target: Path) -> None:
    """Copy all that is in a folder into another; whoever seals or moves the copy syncs it.

    Raises:
        OSError: The disk is full or the folder cannot be written; see :func:`disk_errors`.
    """
    # Not copytree: its error is a list of texts, from which a full disk cannot be told.
    for path in sorted(source.iterdir()):
        if path.is_dir():
            (target / path.name).mkdir()
            copy_files(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def sync_files(folder: Path, files: Iterable[Path]) -> None:
    """Wait until files of a folder are on the disk, with their names and those of inner folders.

    Raises:
        StorageError: The disk is full or cannot be written.
    """
    files = list(files)
    folders = {above for file in files for above in file.parents if above.is_relative_to(folder)}
    with disk_errors(folder):
        for path in (*files, *folders):
            _sync(path)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits.

    Raises:
        ArtifactError: The file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise ArtifactError(f"{path}: must be readable, got {error.strerror}.") from error
    return digest.hexdigest()


def write_manifest(
    folder: Path, *, kind: str, version: int, files: Iterable[Path], payload: Mapping[str, Any]
) -> dict[str, Any]:
    """Seal a folder: sync and hash its files, and write ``manifest.json`` last.

    Whatever a power cut takes, a manifest never stands over files that were not on the disk.

    Args:
        folder: The artifact.
        kind: What it is, such as ``"dataset"``.
        version: Format version of this kind.
        files: Files of the artifact, inside ``folder``.
        payload: Whatever else a reader needs; JSON values.

    Returns:
        The manifest as written.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    files = sorted(files)
    sync_files(folder, files)
    manifest: dict[str, Any] = {
        "kind": kind,
        "version": version,
        **payload,
        "files": {
            file.relative_to(folder).as_posix(): {
                "bytes": file.stat().st_size,
                "sha256": sha256_file(file),
            }
            for file in files
        },
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def read_manifest(folder: Path, *, kind: str, version: int, verify: bool) -> dict[str, Any]:
    """Read ``manifest.json`` and check the folder against it.

    Args:
        folder: The artifact.
        kind: What it must be.
        version: The format version that this code reads.
        verify: Hash every file. Without it only presence and sizes are checked, which finds a
            truncated file but not an altered one.

    Raises:
        ArtifactError: There is no manifest, it is of another kind or version, or a file is
            missing, truncated or altered.
    """
    path = folder / MANIFEST
    if not path.exists():
        article = "" if kind.endswith("s") else "a "  # weights, predictions and inputs are many
        raise ArtifactError(
            f"{folder}: must be {article}finished {kind} with a {MANIFEST}, got none. "
            f"Give another folder or make it anew."
        )
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ArtifactError(
            f"{path}: must be a manifest, got another JSON document. Give another folder."
        )
    if manifest.get("kind") != kind or manifest.get("version") != version:
        raise ArtifactError(
            f"{path}: must be of kind {kind!r} and version {version}, got "
            f"{manifest.get('kind')!r} of version {manifest.get('version')!r}. Give another "
            f"folder, or make it anew with this tamis."
        )
    for name, entry in manifest["files"].items():
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
            raise ArtifactError(
                f"{path}: must give bytes and sha256 of {name!r}, got {entry!r}. Make it anew."
            )
        check_file(
            folder / name, num_bytes=entry["bytes"], sha256=entry["sha256"] if verify else ""
        )
    return manifest


def kind_of(folder: Path) -> str:
    """Kind of the artifact in a folder; empty where there is none.

    Raises:
        ArtifactError: Its manifest is damaged.
    """
    path = folder / MANIFEST
    manifest = read_json(path) if path.exists() else None
    return str(manifest.get("kind", "")) if isinstance(manifest, dict) else ""


def describe_folder(folder: Path) -> str:
    """What tamis wrote into a folder and what to do with it; empty where it may hold logs."""
    if not folder.is_dir():
        return ""
    kind = kind_of(folder)
    if kind == "dataset":
        return "a dataset. Train on it, or name the log that it was made from."
    if kind:
        return f"a folder of kind {kind!r}. Name the log itself."
    if (folder / "schema.toml").exists() and (folder / "splits").is_dir():
        return f"a dataset without its {MANIFEST}. Remove it and ingest the log anew."
    if _is_run(folder):
        return f"a run. To go on with it, give its dataset and --run {folder}."
    for path in sorted(folder.rglob("*.json")):
        inner = path.parent
        if path.name == MANIFEST and (inner / "schema.toml").exists():
            return f"a folder with the dataset {inner} in it. Name that, or the log itself."
        if path.name == "run.json" and _is_run(inner):
            return f"a folder with the run {inner} in it. Name a dataset or a log."
    return ""


def check_file(path: Path, *, num_bytes: int, sha256: str) -> None:
    """Check a file's size and, if ``sha256`` is not empty, its content.

    Raises:
        ArtifactError: The file is missing, truncated or altered.
    """
    if not path.exists():
        raise ArtifactError(f"{path}: must exist, its manifest names it. Make it anew.")
    if (size := path.stat().st_size) != num_bytes:
        raise ArtifactError(f"{path}: must hold {num_bytes} bytes, got {size}. Make it anew.")
    if sha256 and (found := sha256_file(path)) != sha256:
        raise ArtifactError(
            f"{path}: must have sha256 {sha256[:12]}..., got {found[:12]}.... "
            f"It was altered after it was written; make it anew."
        )


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process, until it lets go or dies.

    Raises:
        RunInUseError: A living process holds the folder.
        StorageError: The disk is full or the folder cannot be written.
        ArtifactError: A file stands in its place.
    """
    path = folder / ".lock"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _take_lock(path)
    if descriptor is None:
        raise RunInUseError(
            f"{folder}: must not be in use, got a living process{_holder(path)}. Wait for it, stop "
            f"it, or name another folder."
        )
    try:
        yield
    finally:
        try:
            if _is_still(path, descriptor):
                path.unlink(missing_ok=True)  # While it is locked: whoever waits looks again.
        finally:
            os.close(descriptor)


def check_free(folder: Path) -> None:
    """Check that a folder can be made: nothing stands there, or an empty folder.

    Raises:
        DataError: Something stands there, or it is the working directory, which cannot be replaced.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        found = "files in it" if folder.is_dir() else "a file"
        raise DataError(f"{folder}: must not exist or be empty, got {found}. Name another.")
    if not folder.name:
        raise DataError(f"{folder}: must be a new folder, got the working directory. Name another.")


def check_takes_report(folder: Path) -> None:
    """Check that a report can be put into a folder: none yet, or one that is nothing else.

    Raises:
        ArtifactError: The folder's manifest is damaged.
        DataError: It is a file, a run, or an artifact, whose own report might be replaced.
    """
    if folder.exists() and not folder.is_dir():
        found = "a file"
    elif _is_run(folder):
        found = "a run"
    elif kind := kind_of(folder):
        found = f"a folder of kind {kind!r}"
    else:
        return
    raise DataError(f"{folder}: must be a folder for a report, got {found}. Name another.")


@contextlib.contextmanager
def draft_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that nobody else writes, to be moved to ``folder`` when it is done.

    What a killed process left of its own is removed first; what is not moved, at the end.

    Raises:
        DataError: ``folder`` is taken.
        RunInUseError: Another process is writing ``folder``.
        StorageError: The disk is full or ``folder`` cannot be written.
    """
    with work_folder(folder) as draft:
        check_free(folder)
        yield draft


@contextlib.contextmanager
def work_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``, for one process at a time that writes ``path``.

    What a killed process left of its own is removed first; what is still there, at the end.

    Raises:
        RunInUseError: Another process is writing ``path``.
        StorageError: The disk is full or the folder of ``path`` cannot be written.
    """
    work = path.with_name(f".{path.name}.tmp")
    draft = work / path.name
    with disk_errors(path):
        work.mkdir(parents=True, exist_ok=True)
    with folder_lock(work):
        try:
            shutil.rmtree(draft, ignore_errors=True)
            with disk_errors(path):
                draft.mkdir()
            yield draft
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").exists() and (folder / "config.toml").exists()


def _take_lock(path: Path) -> int | None:
    """A descriptor of a folder's lock file, locked for this process; None if another holds it.

    The kernel lets go of a lock when its holder dies, so none is ever left over.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError) and error.errno in _LOCKLESS:
                raise StorageError(
                    f"{path.parent}: must lie where files can be locked, got {error.strerror}. "
                    f"Give a folder on a local disk."
                ) from error
            raise
        os.close(descriptor)  # Its holder removed it between our two calls: there is another now.


def _holder(path: Path) -> str:
    """Number of the process that holds a lock, after a blank; empty where it is not told yet."""
    try:
        number = path.read_text()
    except FileNotFoundError:
        number = ""
    return number and f" {number}"


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _as_artifact_error(path: Path, error: OSError) -> ArtifactError:
    # Not the error's own text, in which Arrow says what it was writing.
    said = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _FULL:
        return StorageError(
            f"{path}: must fit on the disk, got {said}. Free space or give another "
            f"folder; what stood there before is unharmed."
        )
    if error.errno == errno.EISDIR:
        return ArtifactError(f"{path}: must be a file, got a folder. Name a file.")
    if error.errno in _WRONG_KIND:
        return ArtifactError(
            f"{path}: must be a folder or lie in one, got a file in its place. Name another path."
        )
    return StorageError(
        f"{path}: must be writable, got {said}. Mend its permissions or give another folder."
    )
