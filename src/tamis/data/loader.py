"""Batches from a split: block shuffle, sharding over ranks, prefetch, exact position.

Shuffling permutes blocks of consecutive rows, gathers a pool of blocks at a time, permutes the rows
of the pool, and cuts batches from it. So reading stays sequential within blocks, memory is one
pool, and the order is fixed by (seed, epoch) alone.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tamis.data.batch import Batch, Jagged
from tamis.data.dataset import EncodedRows, Split
from tamis.data.schema import InputSpec
from tamis.errors import ArtifactError, DataError

ROWS_PER_BLOCK = 4096
BLOCKS_PER_POOL = 64


class Loader:
    """Batches of a split, the same for the same (seed, epoch)."""

    def __init__(
        self,
        split: Split,
        spec: InputSpec,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        bucket_by_length: bool = False,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        prefetch: int = 2,
    ) -> None:
        """Prepare to read.

        Args:
            split: Where the rows are.
            spec: Which columns, in which order.
            batch_size: Rows per batch B; the last one may be shorter.
            seed: Decides the order of rows.
            shuffle: Without it rows come in their order on disk.
            bucket_by_length: Whether the batches of a pool hold rows with histories of like
                length, the longest of a row's histories counting; needs ``shuffle``. Attention then
                pads less, and a batch is no random sample any more.
            rank: Which share of the blocks to read, in [0, world_size).
            world_size: Number of shares; they are disjoint and together hold every row once.
            drop_last: Leave a short last batch out.
            prefetch: Batches that a background thread keeps ready; 0 reads in the caller's.

        Raises:
            DataError: The split is empty, or this rank's share is.
            ValueError: A number is out of range.
        """
        if batch_size < 1 or prefetch < 0 or not 0 <= rank < world_size:
            raise ValueError(
                f"loader: batch_size >= 1, prefetch >= 0 and 0 <= rank < world_size must hold, "
                f"got {batch_size}, {prefetch}, {rank} and {world_size}."
            )
        if bucket_by_length and not shuffle:
            raise ValueError("loader: bucket_by_length needs shuffle, got it without.")
        if split.num_rows == 0:
            raise DataError(f"split {split.name!r}: must hold rows, got none.")
        self._is_bucketed = bucket_by_length
        self._split, self._spec = split, spec
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self._drop_last, self._prefetch = drop_last, prefetch
        self._are_ids_checked = False
        # Small data still spreads over ranks: the block shrinks until every rank has some.
        rows_per_block = min(ROWS_PER_BLOCK, max(1, split.num_rows // world_size))
        starts = np.arange(0, split.num_rows, rows_per_block, dtype=np.int64)
        stops = np.minimum(starts + rows_per_block, split.num_rows)
        self._blocks = np.stack([starts, stops], axis=1)[rank::world_size]
        if not len(self._blocks):
            raise DataError(
                f"split {split.name!r}: must hold a row for each of {world_size} ranks, got "
                f"{split.num_rows}."
            )
        self.num_rows = int((self._blocks[:, 1] - self._blocks[:, 0]).sum())

    @property
    def num_batches(self) -> int:
        """Batches of an epoch of this rank."""
        whole, rest = divmod(self.num_rows, self.batch_size)
        return whole + (1 if rest and not self._drop_last else 0)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Batches of an epoch, from ``start_batch`` on.

        What comes is what an uninterrupted epoch would have given from there; the blocks before
        it are not read. Closing the iterator ends the background thread.

        Raises:
            ArtifactError: An id lies outside of its table; checked until an epoch was read whole.
        """
        batches = self._batches(epoch, start_batch)
        if self._prefetch == 0:
            yield from batches
            return
        ahead = _Ahead(batches, self._prefetch)
        try:
            yield from ahead
        finally:
            ahead.close()

    def _batches(self, epoch: int, start_batch: int) -> Iterator[Batch]:
        generator = np.random.default_rng((self.seed, epoch))
        blocks = self._blocks
        if self.shuffle:
            blocks = blocks[generator.permutation(len(blocks))]
        # Rows before ``position`` of the shuffled epoch are done; a pool's rest is carried over.
        position, start = 0, start_batch * self.batch_size
        rest: _Rows | None = None
        for first in range(0, len(blocks), BLOCKS_PER_POOL):
            chosen = blocks[first : first + BLOCKS_PER_POOL]
            count = int((chosen[:, 1] - chosen[:, 0]).sum())
            order = generator.permutation(count) if self.shuffle else np.arange(count)
            begin, position = position, position + count
            # Drawn also for pools that are passed over: the order must not depend on the start.
            places = generator.permutation(count // self.batch_size) if self._is_bucketed else None
            if position <= start:
                continue
            pool = _read_pool(self._split, self._spec, chosen)
            if not self._are_ids_checked:
                _check_ids(pool, self._split, self._spec)
            if places is not None:
                # The first rows complete a batch that the pool before began.
                missing = -begin % self.batch_size
                order = _bucketed(order, pool.longest(), missing, self.batch_size, places)
            used = max(0, start - begin)
            while used < count:
                missing = self.batch_size - (rest.num_rows if rest is not None else 0)
                picked = pool.take(order[used : used + missing])
                used += picked.num_rows
                rest = picked if rest is None else rest.join(picked)
                if rest.num_rows == self.batch_size:
                    yield rest.to_batch()
                    rest = None
        self._are_ids_checked = self._are_ids_checked or start_batch == 0
        if rest is not None and not self._drop_last:
            yield rest.to_batch()


def batches_of_rows(rows: EncodedRows, spec: InputSpec, *, batch_size: int) -> Iterator[Batch]:
    """Batches of rows that were just encoded, in order, as prediction needs them.

    Args:
        rows: Rows of a log.
        spec: Which columns, in which order.
        batch_size: Rows per batch; the last one may be shorter.
    """
    count = rows.num_rows
    ids = [rows.ids[item.name] for item in spec.categorical]
    numeric = [rows.numeric[name] for name in spec.numeric]
    labels = [rows.labels[task.name] for task in spec.tasks]
    weights = np.ones(count, np.float32) if rows.weights is None else rows.weights
    whole = _Rows(
        ids=np.stack(ids, axis=1) if ids else np.empty((count, 0), np.int32),
        numeric=np.stack(numeric, axis=1) if numeric else np.empty((count, 0), np.float32),
        labels=np.stack(labels, axis=1) if labels else np.empty((count, 0), np.float32),
        weights=weights,
        sequences={
            name: _Histories(values=values, lengths=lengths)
            for name, (values, lengths) in rows.sequences.items()
        },
    )
    for start in range(0, count, batch_size):
        yield whole.take(np.arange(start, min(start + batch_size, count))).to_batch()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """Some rows, read into memory."""

    ids: NDArray[Any]
    """(rows, F)."""
    numeric: NDArray[np.float32]
    """(rows, M)."""
    labels: NDArray[np.float32]
    """(rows, T)."""
    weights: NDArray[np.float32]
    """(rows,)."""
    sequences: dict[str, "_Histories"]
    """By group."""

    @property
    def num_rows(self) -> int:
        return len(self.labels)

    def longest(self) -> NDArray[np.int64]:
        """Events of the longest history of each row."""
        longest = np.zeros(self.num_rows, np.int64)
        for item in self.sequences.values():
            np.maximum(longest, item.lengths, out=longest)
        return longest

    def take(self, order: NDArray[np.int64]) -> "_Rows":
        return _Rows(
            ids=np.take(self.ids, order, axis=0),
            numeric=np.take(self.numeric, order, axis=0),
            labels=np.take(self.labels, order, axis=0),
            weights=np.take(self.weights, order),
            sequences={name: item.take(order) for name, item in self.sequences.items()},
        )

    def join(self, other: "_Rows") -> "_Rows":
        return _Rows(
            ids=np.concatenate([self.ids, other.ids]),
            numeric=np.concatenate([self.numeric, other.numeric]),
            labels=np.concatenate([self.labels, other.labels]),
            weights=np.concatenate([self.weights, other.weights]),
            sequences={k: v.join(other.sequences[k]) for k, v in self.sequences.items()},
        )

    def to_batch(self) -> Batch:
        return Batch(
            ids=torch.from_numpy(self.ids),
            numeric=torch.from_numpy(self.numeric),
            labels=torch.from_numpy(self.labels),
            weights=torch.from_numpy(self.weights),
            sequences={name: item.to_jagged() for name, item in self.sequences.items()},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Histories:
    """Jagged columns over the same events."""

    values: NDArray[Any]
    """(nnz, E)."""
    lengths: NDArray[np.int64]
    """(rows,)."""

    def take(self, order: NDArray[np.int64]) -> "_Histories":
        lengths = self.lengths[order]
        starts = np.cumsum(self.lengths) - self.lengths
        # Position k of the result lies (k - first position of its row) events into its source.
        shift = starts[order] - (np.cumsum(lengths) - lengths)
        picked = np.arange(int(lengths.sum())) + np.repeat(shift, lengths)
        return _Histories(values=np.take(self.values, picked, axis=0), lengths=lengths)

    def join(self, other: "_Histories") -> "_Histories":
        return _Histories(
            values=np.concatenate([self.values, other.values]),
            lengths=np.concatenate([self.lengths, other.lengths]),
        )

    def to_jagged(self) -> Jagged:
        offsets = np.zeros(len(self.lengths) + 1, np.int64)
        np.cumsum(self.lengths, out=offsets[1:])
        return Jagged(values=torch.from_numpy(self.values), offsets=torch.from_numpy(offsets))


def _read_pool(split: Split, spec: InputSpec, blocks: NDArray[np.int64]) -> _Rows:
    columns = split.columns
    categorical = [item.name for item in spec.categorical]
    wide = any(columns.dtype(name) == np.int64 for name in categorical)
    weight = ["weight"] if columns.has("weight") else []
    count = int((blocks[:, 1] - blocks[:, 0]).sum())
    pool = _Rows(
        ids=_read_matrix(split, categorical, blocks, np.int64 if wide else np.int32),
        numeric=_read_matrix(split, list(spec.numeric), blocks, np.float32),
        labels=_read_matrix(split, [f"label:{task.name}" for task in spec.tasks], blocks),
        weights=_read_matrix(split, weight, blocks)[:, 0] if weight else np.ones(count, np.float32),
        sequences={
            group.name: _read_histories(split, group.fields, blocks) for group in spec.sequences
        },
    )
    columns.release()
    return pool


def _bucketed(
    order: NDArray[np.int64],
    lengths: NDArray[np.int64],
    missing: int,
    batch_size: int,
    places: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Rows in batches of like length: ``missing`` of any, whole batches at random, then a rest.

    Args:
        order: Rows of a pool, at random.
        lengths: Length of each row.
        missing: Rows that come first as they are.
        batch_size: Rows per batch.
        places: A random order of as many batches as the pool can hold, or of more.
    """
    first, others = order[:missing], order[missing:]
    others = others[np.argsort(lengths[others], kind="stable")]
    whole = len(others) // batch_size
    batches = others[: whole * batch_size].reshape(whole, batch_size)
    shuffled = batches[places[places < whole]].ravel()
    return np.concatenate([first, shuffled, others[whole * batch_size :]])


def _check_ids(pool: _Rows, split: Split, spec: InputSpec) -> None:
    """Refuse ids outside of their tables: in merged tables they are rows of other fields."""
    sizes = spec.num_rows_by_table
    groups = [(pool.ids, [(item.name, item.table) for item in spec.categorical])]
    groups += [
        (pool.sequences[group.name].values, list(zip(group.fields, group.tables, strict=True)))
        for group in spec.sequences
    ]
    for ids, columns in groups:
        if not len(ids) or not columns:
            continue
        # Seen without a sign, negative ids are large ones.
        largest = ids.view(np.uint32 if ids.dtype.itemsize == 4 else np.uint64).max(axis=0)
        for (name, table), value in zip(columns, largest.tolist(), strict=True):
            if value >= sizes[table]:
                raise ArtifactError(
                    f"{split.columns.path}, column {name!r}: ids must be below {sizes[table]}, the "
                    f"rows of their table, got one that is not. The file was altered after it was "
                    f"written; ingest the log anew."
                )


def _read_matrix(
    split: Split,
    names: list[str],
    blocks: NDArray[np.int64],
    dtype: type[Any] = np.float32,
) -> NDArray[Any]:
    count = int((blocks[:, 1] - blocks[:, 0]).sum())
    out = np.empty((count, len(names)), dtype)
    at = 0
    # Block by block, so that the part of ``out`` that the strided writes touch stays in cache.
    for start, stop in blocks.tolist():
        part = out[at : at + stop - start]
        split.columns.read_into(names, start, stop, part)
        at += stop - start
    return out


def _read_histories(split: Split, fields: tuple[str, ...], blocks: NDArray[np.int64]) -> _Histories:
    columns: list[NDArray[Any]] = []
    lengths: NDArray[np.int64] = np.empty(0, np.int64)
    for name in fields:
        parts = [split.columns.read_jagged(name, start, stop) for start, stop in blocks.tolist()]
        columns.append(np.concatenate([values for values, _ in parts]))
        lengths = np.concatenate([counts for _, counts in parts])
    return _Histories(values=np.stack(columns, axis=1), lengths=lengths)


class _Ahead:
    """Runs an iterator in a background thread, a few items ahead of whoever consumes them."""

    def __init__(self, items: Iterator[Batch], depth: int) -> None:
        self._queue: queue.Queue[Callable[[], Batch] | None] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._fill, args=(items,), name="tamis-loader", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        while (item := self._queue.get()) is not None:
            yield item()

    def close(self) -> None:
        """End the thread, whatever it is doing."""
        self._stopped.set()
        while self._thread.is_alive():
            # A full queue would keep the thread waiting for room.
            try:
                self._queue.get(timeout=0.01)
            except queue.Empty:
                continue
        self._thread.join()

    def _fill(self, items: Iterator[Batch]) -> None:
        try:
            for item in items:
                self._queue.put(lambda item=item: item)  # type: ignore[misc]
                if self._stopped.is_set():
                    return
        except Exception as error:  # noqa: BLE001  (raised again in the consumer's thread)
            self._queue.put(_raiser(error))
        self._queue.put(None)


def _raiser(error: Exception) -> Callable[[], Batch]:
    def fail() -> Batch:
        raise error

    return fail
