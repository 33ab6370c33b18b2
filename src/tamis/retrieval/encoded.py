"""From raw rows of items and of users to what searchers take, by the encoders of a dataset."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tamis.data.batch import Batch, blank_batch
from tamis.data.encoders import Encoders
from tamis.data.ingest import encode_log
from tamis.data.loader import batches_of_rows
from tamis.data.schema import InputSpec
from tamis.errors import DataError

PairFeatures = Callable[[Int[Tensor, " C"]], Float[Tensor, "C N"]]
"""From items to the N numeric features of side context of one user with each of them."""


def encoded_rows(
    path: Path, encoders: Encoders, spec: InputSpec, *, batch_size: int = 4096
) -> Iterator[tuple[Tensor, Batch]]:
    """Numbers (B,) of rows, from 0, and the rows, some at a time; what an index is published from.

    Args:
        path: A log with a row for each item, or for each user; labels and roles may be absent, and
            columns of what is not described may hold nothing.
        encoders: Those of the dataset that the model was trained on.
        spec: Inputs of the model.
        batch_size: Rows at a time.

    Raises:
        DataError: The log cannot be read, or lacks a column.
    """
    first = 0
    for rows in encode_log(path, encoders):
        for batch in batches_of_rows(rows, spec, batch_size=batch_size):
            yield torch.arange(first, first + batch.num_rows), batch
            first += batch.num_rows


def pairs_by_features(
    spec: InputSpec, features: PairFeatures
) -> Callable[[Int[Tensor, " C"]], Batch]:
    """What a request tells of a user with items, for models whose crosses are all numbers.

    Args:
        spec: Inputs of the model.
        features: The features as encoded, in the order of the spec's numeric features of side
            context.

    Raises:
        DataError: The context side has categories or sequences.
    """
    columns = list(spec.numeric_of("context"))
    if spec.categorical_of("context") or spec.sequences_of("context"):
        raise DataError(
            "pairs: the context side must hold numbers alone, got categories or sequences. Make "
            "its rows yourself."
        )

    def pairs(items: Tensor) -> Batch:
        batch = blank_batch(spec, len(items), items.device)
        batch.numeric[:, columns] = features(items)
        return batch

    return pairs
