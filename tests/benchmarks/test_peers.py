import sys
from pathlib import Path

import peers
import pytest

WORKER = """
import os, sys
sys.path.insert(0, {benchmarks!r})
import worker

def open_contender(config):
    print("chatter of a library")
    if config.get("broken"):
        raise ImportError("no module named peer")
    return {{
        "hello": lambda _: {{"threads": os.environ["OMP_NUM_THREADS"]}},
        "double": lambda message: {{"value": 2 * message["value"]}},
        "fail": lambda _: 1 / 0,
        "die": lambda _: os._exit(3),
    }}

worker.serve(open_contender)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "stub.py"
    path.write_text(WORKER.format(benchmarks=str(peers.BENCHMARKS)))
    return path


def start(script, **config):
    return peers.Worker(
        str(script),
        {"threads": 1, **config},
        python=Path(sys.executable),
        log=script.parent / "log.txt",
    )


def test_worker_answers_commands_and_keeps_chatter_out_of_answers(script):
    with start(script) as worker:
        assert worker.hello["threads"] == "1"
        answer = worker.ask("double", value=21)
        assert answer["value"] == 42
        # A Python process takes megabytes, not kilobytes: the unit is bytes.
        assert answer["peak_rss_bytes"] > 2**20
    assert "chatter of a library" in (script.parent / "log.txt").read_text()


def test_worker_passes_on_an_error_and_lives_on(script):
    with start(script) as worker:
        with pytest.raises(peers.PeerError, match="ZeroDivisionError: division by zero"):
            worker.ask("fail")
        assert worker.ask("double", value=1)["value"] == 2


def test_worker_that_cannot_start_gives_the_librarys_message(script):
    with pytest.raises(peers.PeerError, match="ImportError: no module named peer"):
        start(script, broken=True)


def test_worker_that_dies_is_reported_with_its_status(script):
    with start(script) as worker, pytest.raises(peers.PeerError, match="exit status 3"):
        worker.ask("die")


def test_requirements_pin_torch_to_the_local_build():
    for peer in peers.PEERS.values():
        found = peers.requirements_of(peer, "2.13.0+cpu")
        assert found[0] == "torch==2.13.0+cpu"
        assert all(
            "torch" not in one.split("=")[0].split("-")
            for one in found[1:]
            if not one.startswith("deepctr-torch")
        )


def test_environment_identity_follows_requirements_and_python_but_not_their_order():
    same = peers.fingerprint(("a==1", "b==2"), "3.11")
    assert peers.fingerprint(("b==2", "a==1"), "3.11") == same
    assert peers.fingerprint(("a==1", "b==3"), "3.11") != same
    assert peers.fingerprint(("a==1", "b==2"), "3.12") != same


def test_cache_folder_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("TAMIS_BENCH_CACHE", str(tmp_path))
    assert peers.cache_folder() == tmp_path
    monkeypatch.delenv("TAMIS_BENCH_CACHE")
    assert peers.cache_folder() == peers.REPOSITORY / ".cache" / "peers"


def test_environment_is_reused_only_while_its_mark_fits(monkeypatch, tmp_path):
    monkeypatch.setenv("TAMIS_BENCH_CACHE", str(tmp_path))
    peer = peers.Peer(name="p", title="P", script="p.py", requirements=())
    built = []

    def build(folder, with_pip):
        built.append(folder)
        folder.mkdir(parents=True)

    class Done:
        returncode = 0

    monkeypatch.setattr(peers.venv, "create", build)
    monkeypatch.setattr(peers.subprocess, "run", lambda *_, **__: Done())
    peers.environment(peer)
    peers.environment(peer)
    assert len(built) == 1
    (tmp_path / "p" / "requirements.sha256").write_text("another")
    peers.environment(peer)
    assert len(built) == 2


def test_a_failed_install_says_what_pip_said_and_leaves_no_mark(monkeypatch, tmp_path):
    monkeypatch.setenv("TAMIS_BENCH_CACHE", str(tmp_path))
    peer = peers.Peer(name="p", title="P", script="p.py", requirements=())

    class Failed:
        returncode = 1
        stderr = "WARNING: x\nERROR: No matching distribution found for p\n"

    monkeypatch.setattr(peers.venv, "create", lambda folder, with_pip: folder.mkdir())
    monkeypatch.setattr(peers.subprocess, "run", lambda *_, **__: Failed())
    with pytest.raises(peers.PeerError, match="No matching distribution found for p"):
        peers.environment(peer)
    assert not (tmp_path / "p" / "requirements.sha256").exists()
