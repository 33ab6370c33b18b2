"""Predictions of finished runs for many pairs of request and ad at once, for a cascade."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from tamis.data.batch import Batch
from tamis.data.columns import Origin
from tamis.data.dataset import EncodedRows
from tamis.data.encoders import required_columns
from tamis.data.loader import batches_of_rows
from tamis.data.sides import side_batch
from tamis.funnel.ranker import AdFeatures
from tamis.models.early_serving import ServedHead
from tamis.models.early_stage import EarlyStage
from tamis.models.output import probabilities_of
from tamis.training.evaluate import load_predictor
from tamis.training.predict import predict
from tamis.training.run_folder import run_encoders

_PAIRS_AT_A_TIME = 32_768
Predictions = dict[str, NDArray[np.float64]]


class BoundPairs(Protocol):
    """A model that knows R requests and N ads."""

    def predict(self, rows: NDArray[np.int64], ads: NDArray[np.int64]) -> Predictions:
        """Predictions (P,) by task for pairs of a row of the requests and a row of the ads."""
        ...


class PairPredictor:
    """A finished run. An early-stage ranker runs its towers once for each request and ad."""

    def __init__(self, run: Path, *, head: ServedHead = "distilled") -> None:
        """Load a run.

        Args:
            run: Its folder.
            head: Which head serves, for an early-stage ranker; others have one.

        Raises:
            ArtifactError: The run is unfinished or damaged.
        """
        self._predictor, self._spec = load_predictor(run)
        self._encoders = run_encoders(run)
        self._schema = self._encoders.schema
        self._head: ServedHead = head

    def bind(self, requests: pa.Table, ads: pa.Table) -> BoundPairs:
        """Encode requests and ads.

        Args:
            requests: A row for each, with the columns of user and context.
            ads: A row for each, with the columns of the item.
        """
        wanted = required_columns(self._schema, inputs_only=True)
        of_ads = self._encode(_with_blanks(ads, requests, wanted), "ads")
        of_requests = self._encode(_with_blanks(requests, ads, wanted), "requests")
        features = AdFeatures.of_rows(of_ads, self._schema, self._spec)
        (batch,) = batches_of_rows(of_requests, self._spec, batch_size=requests.num_rows)
        if isinstance(self._predictor.model, EarlyStage):
            return _Towers(self._predictor.model, batch, features, self._head)
        return _Rows(self, batch, features)

    def predict_batches(self, batches: Iterator[Batch]) -> Predictions:
        """Predictions of whole rows."""
        found = predict(
            self._predictor.model,
            batches,
            tasks=self._spec.tasks,
            device=self._predictor.device,
            precision=self._predictor.precision,
        )
        return {task.name: found[:, at] for at, task in enumerate(self._spec.tasks)}

    def _encode(self, table: pa.Table, what: str) -> EncodedRows:
        return self._encoders.encode(table, first_row=0, origin=Origin(file=what), inputs_only=True)


class _Rows:
    """Pairs as rows of a model that knows no sides."""

    def __init__(self, owner: PairPredictor, requests: Batch, ads: AdFeatures) -> None:
        self._owner, self._requests, self._ads = owner, requests, ads

    def predict(self, rows: NDArray[np.int64], ads: NDArray[np.int64]) -> Predictions:
        pairs = zip(_parts(rows), _parts(ads), strict=True)
        return self._owner.predict_batches(
            self._ads.pairs(self._requests, request, ad) for request, ad in pairs
        )


class _Towers:
    """Pairs of vectors that the towers gave once."""

    def __init__(
        self, model: EarlyStage, requests: Batch, ads: AdFeatures, head: ServedHead
    ) -> None:
        self._parts = model.export(head=head)
        user = self._parts.embed_user(side_batch(requests, model.spec, "user"))
        has_context = self._parts.context_tower is not None
        context = side_batch(requests, model.spec, "context") if has_context else None
        self._queries = self._parts.query(user, context)
        self._ads = self._parts.embed_ads(ads.of_ads(torch.arange(len(ads))))

    @torch.inference_mode()
    def predict(self, rows: NDArray[np.int64], ads: NDArray[np.int64]) -> Predictions:
        tasks = self._parts.tasks
        found = [
            probabilities_of(self._parts.scorer(self._queries[request], self._ads[ad]), tasks)
            for request, ad in zip(_parts(rows), _parts(ads), strict=True)
        ]
        predictions = torch.cat(found).numpy() if found else np.zeros((0, len(tasks)))
        return {task.name: predictions[:, at] for at, task in enumerate(tasks)}


def _parts(rows: NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
    return torch.from_numpy(rows).split(_PAIRS_AT_A_TIME) if len(rows) else ()


def _with_blanks(table: pa.Table, other: pa.Table, wanted: list[str]) -> pa.Table:
    """A table with the wanted columns, empty where only the other side has them."""
    columns = {
        name: table[name]
        if name in table.column_names
        else pa.nulls(table.num_rows, other.schema.field(name).type)
        for name in wanted
    }
    return pa.table(columns)
