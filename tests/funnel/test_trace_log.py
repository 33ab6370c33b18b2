"""Traces on disk: back as they were, or not at all."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from safetensors import SafetensorError

from tamis.errors import ArtifactError, DataError, StorageError
from tamis.funnel.ads import AdTable
from tamis.funnel.funnel import Funnel, Step
from tamis.funnel.request import Request
from tamis.funnel.trace import Trace
from tamis.funnel.trace_log import read_traces, write_traces
from tamis.retrieval.searcher import LevelTrace


@pytest.fixture
def traces(
    make_ads: Callable[..., AdTable],
    make_stage: Any,
    make_request: Callable[..., Request],
    click_value: Any,
) -> list[Trace]:
    """Five requests; the second falls back everywhere, the third has no candidates."""
    number = 0

    def fail_once() -> None:
        if number == 1:
            raise RuntimeError("no memory")

    clicks = np.linspace(0.1, 0.9, 30)
    steps = [
        Step(name="early", stage=make_stage(lambda ads: -ads, before=fail_once), keep=9),
        Step(
            name="final",
            stage=make_stage(
                lambda ads: clicks[ads], {"click": lambda ads: clicks[ads]}, before=fail_once
            ),
            keep=4,
        ),
    ]
    funnel = Funnel(steps, make_ads(30), click_value)
    found = []
    for number in range(5):
        candidates = np.arange(0 if number == 2 else 10 + number)
        found.append(funnel.answer(make_request(2**40 + number, candidates=candidates)))
    # An unknown cost and an auction that fell back are kept too.
    levels = (
        LevelTrace(nodes=32, pairs=30, kept=8, flops=2**40, bytes=120),
        LevelTrace(nodes=500, pairs=90, kept=9, flops=7, bytes=360),
    )
    stages = (replace(found[4].stages[0], flops=None, levels=levels), found[4].stages[1])
    found[4] = replace(found[4], stages=stages, auction_fallback="DataError: rate")
    return found


def _same(first: Trace, second: Trace) -> bool:
    return json.dumps(first.to_json()) == json.dumps(second.to_json())


def test_traces_are_read_back_as_they_were(traces: list[Trace], tmp_path: Path) -> None:
    write_traces(tmp_path / "traces", traces)

    found = read_traces(tmp_path / "traces")

    assert len(found) == 5
    assert all(_same(a, b) for a, b in zip(found, traces, strict=True))
    assert found[1].stages[0].fallback == "RuntimeError: no memory"
    assert found[4].stages[0].flops is None
    assert found[4].stages[0].levels == traces[4].stages[0].levels
    assert len(found[4].stages[0].levels) == 2
    assert found[3].stages[0].levels == ()
    assert all(trace.stages[1].ads.dtype == np.int32 for trace in found)


def test_traces_of_other_funnels_do_not_mix(traces: list[Trace], tmp_path: Path) -> None:
    other = replace(traces[0], stages=traces[0].stages[:1])

    with pytest.raises(DataError, match=r"same stages, got early and early, final"):
        write_traces(tmp_path / "traces", [traces[0], other])
    with pytest.raises(DataError, match=r"same stages, got no trace"):
        write_traces(tmp_path / "traces", [])
    assert not (tmp_path / "traces").exists()


def test_altered_traces_are_refused(traces: list[Trace], tmp_path: Path) -> None:
    write_traces(tmp_path, traces)
    path = tmp_path / "traces.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))

    with pytest.raises(ArtifactError, match=r"traces.safetensors: must have sha256"):
        read_traces(tmp_path)


def test_full_disk_is_said(
    traces: list[Trace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)

    with pytest.raises(StorageError, match=r"traces.safetensors: must be writable, got I/O error"):
        write_traces(tmp_path, traces)
    assert list(tmp_path.iterdir()) == []


def test_manifest_of_other_traces_is_refused(traces: list[Trace], tmp_path: Path) -> None:
    write_traces(tmp_path, traces)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "stages": ["early", "final", "last"]}))

    with pytest.raises(ArtifactError, match=r"must hold the traces that its manifest describes"):
        read_traces(tmp_path)
