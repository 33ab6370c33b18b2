"""Sealed folders, full disks, and folders that are called what they are."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tamis import artifacts
from tamis.data.dataset import Dataset
from tamis.errors import ArtifactError, RunInUseError, StorageError


def _seal(folder: Path, kind: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.bin").write_bytes(b"abc")
    artifacts.write_manifest(
        folder, kind=kind, version=1, files=[folder / "a.bin"], payload={"rows": 3}
    )


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOSPC, StorageError, r"runs/a: must fit on the disk, got .* Free space or give"),
        (errno.EDQUOT, StorageError, r"runs/a: must fit on the disk, got "),
        (errno.EACCES, StorageError, r"runs/a: must be writable, got Permission denied. Mend"),
        (errno.EROFS, StorageError, r"runs/a: must be writable, got Read-only file system"),
        (errno.ENOTDIR, ArtifactError, r"runs/a: must be a folder or lie in one, got a file"),
        (errno.EISDIR, ArtifactError, r"runs/a: must be a file, got a folder. Name a file"),
    ],
)
def test_disk_errors_name_place_and_remedy(
    number: int, kind: type[ArtifactError], message: str
) -> None:
    import os

    with (
        pytest.raises(ArtifactError, match=message) as caught,
        artifacts.disk_errors(Path("runs/a")),
    ):
        raise OSError(number, os.strerror(number))

    assert type(caught.value) is kind


def test_error_of_another_kind_is_left_alone() -> None:
    with pytest.raises(FileNotFoundError), artifacts.disk_errors(Path("runs/a")):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")


def test_full_disk_leaves_the_file_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    artifacts.write_json(path, [1])

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts.os, "fsync", full)

    with pytest.raises(StorageError, match=r"a.json: must fit on the disk, .* is unharmed"):
        artifacts.write_json(path, [2])
    assert artifacts.read_json(path) == [1]
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_files_and_their_folders_are_on_the_disk_before_the_manifest(
    tmp_path: Path, synced: list[int]
) -> None:
    folder = tmp_path / "a"
    (folder / "b" / "c").mkdir(parents=True)
    files = [folder / "b" / "c" / "large.bin", folder / "small.bin"]
    for file in files:
        file.write_bytes(b"abc")

    artifacts.write_manifest(folder, kind="weights", version=1, files=iter(files), payload={})

    sealed = synced.index((folder / "manifest.json").stat().st_ino)
    before = synced[:sealed]
    assert {path.stat().st_ino for path in (*files, *(files[0].parents[:3]))} <= set(before)
    assert [synced.count(file.stat().st_ino) for file in files] == [1, 1]


def test_move_is_on_the_disk_on_both_sides(
    tmp_path: Path, synced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    draft, place = tmp_path / "work" / "a", tmp_path / "there" / "a"
    draft.mkdir(parents=True)
    place.parent.mkdir()
    replace = os.replace

    def record(source: Path, target: Path) -> None:
        synced.append(0)
        replace(source, target)

    monkeypatch.setattr(artifacts.os, "replace", record)

    artifacts.move_into_place(draft, place)

    moved = synced.index(0)
    assert synced[:moved] == [place.stat().st_ino]
    parents = {draft.parent.stat().st_ino, place.parent.stat().st_ino}
    assert set(synced[moved + 1 :]) == parents


def test_folder_is_copied_whole_or_a_full_disk_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "a").write_text("a")
    (source / "inner" / "b").write_text("b")
    for name in ("whole", "full"):
        (tmp_path / name).mkdir()

    artifacts.copy_files(source, tmp_path / "whole")

    found = [path for path in sorted((tmp_path / "whole").rglob("*")) if path.is_file()]
    assert [path.read_text() for path in found] == ["a", "b"]

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with (
        pytest.raises(StorageError, match=r"full: must fit on the disk, got No space left"),
        artifacts.disk_errors(tmp_path / "full"),
    ):
        artifacts.copy_files(source, tmp_path / "full")


def test_file_in_place_of_the_folder_of_a_new_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "that.csv").write_text("a\n")

    with pytest.raises(ArtifactError, match=r"must be a folder or lie in one, got a file"):
        artifacts.write_text(tmp_path / "that.csv" / "new.csv", "b\n")


def test_file_in_place_of_a_locked_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "that.csv").write_text("a\n")

    with (
        pytest.raises(ArtifactError, match=r"that.csv: must be a folder or lie in one, got a file"),
        artifacts.folder_lock(tmp_path / "that.csv"),
    ):
        pass


def test_json_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "that.csv").write_text("a\n")

    with pytest.raises(ArtifactError, match=r"run.json: must be a readable file, got Not a dir"):
        artifacts.read_json(tmp_path / "that.csv" / "run.json")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("weights", "must be finished weights with a manifest.json, got none"),
        ("dataset", "must be a finished dataset with a manifest.json, got none"),
    ],
)
def test_folder_without_a_manifest_was_never_finished(
    tmp_path: Path, kind: str, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        artifacts.read_manifest(tmp_path, kind=kind, version=1, verify=False)


def test_manifest_of_another_kind_or_form_is_refused(tmp_path: Path) -> None:
    _seal(tmp_path, "weights")
    with pytest.raises(ArtifactError, match="must be of kind 'dataset' and version 1, got 'weigh"):
        artifacts.read_manifest(tmp_path, kind="dataset", version=1, verify=False)

    manifest = {"kind": "weights", "version": 1, "files": {"a.bin": 3}}
    artifacts.write_json(tmp_path / "manifest.json", manifest)
    with pytest.raises(ArtifactError, match=r"must give bytes and sha256 of 'a.bin', got 3"):
        artifacts.read_manifest(tmp_path, kind="weights", version=1, verify=False)


def test_folders_are_called_what_they_are(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "part.json").write_text('{"a": 1}\n')
    assert artifacts.describe_folder(logs) == ""
    assert artifacts.describe_folder(logs / "part.json") == ""
    assert artifacts.describe_folder(tmp_path / "nowhere") == ""

    dataset = make_dataset(name="sets/mine").path
    assert artifacts.describe_folder(dataset).startswith("a dataset. Train on it")
    assert artifacts.describe_folder(tmp_path / "sets") == (
        f"a folder with the dataset {dataset} in it. Name that, or the log itself."
    )
    (dataset / "manifest.json").unlink()
    assert artifacts.describe_folder(dataset).startswith("a dataset without its manifest.json")

    run = tmp_path / "runs" / "a"
    _seal(run / "checkpoints" / "best", "weights")
    for name in ("run.json", "config.toml"):
        (run / name).write_text("{}")
    assert artifacts.describe_folder(run).startswith("a run. To go on with it, give its dataset")
    assert artifacts.describe_folder(run.parent).startswith(f"a folder with the run {run} in it")
    assert artifacts.describe_folder(run / "checkpoints" / "best") == (
        "a folder of kind 'weights'. Name the log itself."
    )


def test_lock_of_a_killed_process_is_free_and_that_of_a_living_one_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tamis import artifacts\n"
        "with artifacts.folder_lock(Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(RunInUseError, match=rf"got a living process {holder.pid}\. Wait"),
            artifacts.folder_lock(tmp_path),
        ):
            pass
        holder.kill()
    assert (tmp_path / ".lock").exists()

    with artifacts.folder_lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    assert not list(tmp_path.iterdir())


def test_one_of_many_holds_a_folder(tmp_path: Path) -> None:
    # A file of a process that died, and many who want it at once.
    (tmp_path / ".lock").write_text("123")
    inside: list[int] = []
    held: list[int] = []

    def contend(number: int) -> None:
        own = 0
        while own < 20:
            with contextlib.suppress(RunInUseError), artifacts.folder_lock(tmp_path):
                inside.append(number)
                time.sleep(0)
                held.append(len(inside))
                inside.pop()
                own += 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(contend, range(8)))

    assert held == [1] * 160


def test_lock_that_cannot_be_written_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(artifacts.os, "write", full)
        with (
            pytest.raises(StorageError, match="must fit on the disk"),
            artifacts.folder_lock(tmp_path),
        ):
            pass

    with artifacts.folder_lock(tmp_path):
        pass


def test_place_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(artifacts.fcntl, "flock", refuse)

    with (
        pytest.raises(StorageError, match=rf"{tmp_path}: must lie where files can be locked, got"),
        artifacts.folder_lock(tmp_path),
    ):
        pass


def test_lock_that_was_removed_by_hand_is_not_removed_again(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with artifacts.folder_lock(tmp_path):
        path.unlink()
        path.write_text("another's")

    assert path.read_text() == "another's"
