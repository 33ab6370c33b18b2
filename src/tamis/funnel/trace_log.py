"""Traces of many requests on disk: one array for each column, as an early stage learns from them.

manifest.json        stages, fallback reasons, SHA-256; written last
traces.safetensors   columns; what a request has any number of stands behind offsets
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from tamis import artifacts
from tamis.errors import ArtifactError, DataError, StorageError
from tamis.funnel.auction import Slate
from tamis.funnel.trace import StageTrace, Trace
from tamis.retrieval.searcher import LevelTrace

TRACES_VERSION = 2
_FILE = "traces.safetensors"
_Columns = dict[str, NDArray[Any]]


def write_traces(folder: Path, traces: Sequence[Trace]) -> None:
    """Write traces of one funnel; about four bytes an ad and four a score.

    Raises:
        DataError: There is no trace, or they are of funnels with different stages.
        StorageError: The disk is full or the folder cannot be written.
    """
    names = _names_of(traces)
    reasons: dict[str, int] = {"": 0}

    def code(reason: str) -> int:
        return reasons.setdefault(reason, len(reasons))

    columns: _Columns = {
        "request_id": _column(traces, np.int64, lambda trace: trace.request_id),
        "elapsed_ms": _column(traces, np.float64, lambda trace: trace.elapsed_ms),
        "auction_ms": _column(traces, np.float64, lambda trace: trace.auction_ms),
        "auction_fallback": _column(traces, np.int32, lambda trace: code(trace.auction_fallback)),
    }
    for place, _ in enumerate(names):
        stages = [trace.stages[place] for trace in traces]
        columns |= {f"stage{place}.{name}": found for name, found in _of_stage(stages, code)}
    slates = [trace.slate for trace in traces]
    for name in ("ads", "prices", "values", "rates"):
        columns[f"slate.{name}"] = np.concatenate([getattr(slate, name) for slate in slates])
    columns["slate.offsets"] = _offsets([len(slate.ads) for slate in slates])
    try:
        with artifacts.atomic_path(folder / _FILE) as temporary:
            safetensors.numpy.save_file(columns, str(temporary))
    except SafetensorError as error:  # safetensors has its own word for a full disk
        raise StorageError(
            f"{folder / _FILE}: must be writable, got {error}. Free space or give another folder."
        ) from error
    artifacts.write_manifest(
        folder,
        kind="traces",
        version=TRACES_VERSION,
        files=[folder / _FILE],
        payload={"requests": len(traces), "stages": list(names), "reasons": list(reasons)},
    )


def read_traces(folder: Path) -> list[Trace]:
    """Read traces that :func:`write_traces` wrote, equal in every number.

    Raises:
        ArtifactError: The folder holds none, or a file is damaged.
    """
    manifest = artifacts.read_manifest(folder, kind="traces", version=TRACES_VERSION, verify=True)
    path = folder / _FILE
    try:
        columns = safetensors.numpy.load_file(str(path))
        stages = [
            _stages_from(columns, place, name, manifest["reasons"])
            for place, name in enumerate(manifest["stages"])
        ]
        return _traces_from(columns, stages, manifest["reasons"])
    except (SafetensorError, KeyError, IndexError) as error:
        raise ArtifactError(
            f"{path}: must hold the traces that its manifest describes, got {error}. Make it anew."
        ) from error


def _names_of(traces: Sequence[Trace]) -> tuple[str, ...]:
    names = {tuple(stage.name for stage in trace.stages) for trace in traces}
    if len(names) != 1:
        found = " and ".join(sorted(", ".join(each) for each in names)) or "no trace"
        raise DataError(
            f"traces: must be one or more of funnels with the same stages, got {found}. Write the "
            f"traces of each funnel to a folder of its own."
        )
    return names.pop()


def _of_stage(
    stages: list[StageTrace], code: Callable[[str], int]
) -> list[tuple[str, NDArray[Any]]]:
    def flops(stage: StageTrace) -> float:
        return np.nan if stage.flops is None else stage.flops

    return [
        ("num_candidates", _column(stages, np.int32, lambda stage: stage.num_candidates)),
        ("elapsed_ms", _column(stages, np.float64, lambda stage: stage.elapsed_ms)),
        ("scored_pairs", _column(stages, np.int32, lambda stage: stage.scored_pairs)),
        ("flops", _column(stages, np.float64, flops)),
        ("cache_lookups", _column(stages, np.int32, lambda stage: stage.cache_lookups)),
        ("cache_hits", _column(stages, np.int32, lambda stage: stage.cache_hits)),
        ("fallback", _column(stages, np.int32, lambda stage: code(stage.fallback))),
        ("ads", np.concatenate([stage.ads for stage in stages])),
        ("scores", np.concatenate([stage.scores for stage in stages])),
        ("offsets", _offsets([len(stage.ads) for stage in stages])),
        ("levels", _level_columns(stages)),
        ("level_offsets", _offsets([len(stage.levels) for stage in stages])),
    ]


def _level_columns(stages: list[StageTrace]) -> NDArray[np.int64]:
    """(levels of all requests, fields of a level)."""
    rows = [astuple(level) for stage in stages for level in stage.levels]
    return np.array(rows, np.int64).reshape(-1, len(fields(LevelTrace)))


def _stages_from(columns: _Columns, place: int, name: str, reasons: list[str]) -> list[StageTrace]:
    column = {
        key.removeprefix(f"stage{place}."): values
        for key, values in columns.items()
        if key.startswith(f"stage{place}.")
    }
    flops = column["flops"].tolist()
    bounds, level_bounds = column["offsets"], column["level_offsets"]
    names = [field.name for field in fields(LevelTrace)]
    levels = [LevelTrace(**dict(zip(names, row, strict=True))) for row in column["levels"].tolist()]
    return [
        StageTrace(
            name=name,
            num_candidates=int(column["num_candidates"][at]),
            ads=column["ads"][bounds[at] : bounds[at + 1]],
            scores=column["scores"][bounds[at] : bounds[at + 1]],
            elapsed_ms=float(column["elapsed_ms"][at]),
            scored_pairs=int(column["scored_pairs"][at]),
            flops=None if np.isnan(flops[at]) else flops[at],
            cache_lookups=int(column["cache_lookups"][at]),
            cache_hits=int(column["cache_hits"][at]),
            fallback=reasons[column["fallback"][at]],
            levels=tuple(levels[level_bounds[at] : level_bounds[at + 1]]),
        )
        for at in range(len(flops))
    ]


def _traces_from(
    columns: _Columns, stages: list[list[StageTrace]], reasons: list[str]
) -> list[Trace]:
    bounds = columns["slate.offsets"]
    traces = []
    for at, request_id in enumerate(columns["request_id"].tolist()):
        shown = slice(int(bounds[at]), int(bounds[at + 1]))
        traces.append(
            Trace(
                request_id=request_id,
                stages=tuple(stage[at] for stage in stages),
                slate=Slate(
                    ads=columns["slate.ads"][shown],
                    prices=columns["slate.prices"][shown],
                    values=columns["slate.values"][shown],
                    rates=columns["slate.rates"][shown],
                ),
                auction_ms=float(columns["auction_ms"][at]),
                elapsed_ms=float(columns["elapsed_ms"][at]),
                auction_fallback=reasons[columns["auction_fallback"][at]],
            )
        )
    return traces


def _column(rows: Sequence[Any], dtype: type[Any], read: Callable[[Any], Any]) -> NDArray[Any]:
    return np.array([read(row) for row in rows], dtype)


def _offsets(lengths: list[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
