"""A stage around a trained model: one batched call for all candidates of a request."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tamis.data.batch import Batch, Jagged, concatenate
from tamis.data.dataset import EncodedRows
from tamis.data.schema import InputSpec, Schema, Task
from tamis.errors import DataError, SchemaError
from tamis.funnel.ads import AdTable, Valuation
from tamis.funnel.calibration import UNCALIBRATED, Calibration
from tamis.funnel.candidates import Candidates
from tamis.funnel.request import Request
from tamis.funnel.stage import BatchStage, Scored
from tamis.funnel.stages import flops_of
from tamis.models.output import probabilities_of
from tamis.nn.rounded import rounded
from tamis.retrieval.inverted_index import PairCount, pair_counts


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AdFeatures:
    """The encoded item fields of all N ads, ready to be gathered into batches.

    Made by :meth:`of_rows`. A snapshot: features that change (a click rate, a budget) are as old as
    the rows it was made of.
    """

    ids: Tensor
    """(N, F_item) int64 table rows."""
    id_columns: Tensor
    """(F_item,) int64, their columns in ``Batch.ids``."""
    numeric: Tensor
    """(N, M_item) float32."""
    numeric_columns: Tensor
    """(M_item,) int64, their columns in ``Batch.numeric``."""
    sequences: Mapping[str, Jagged] = field(default_factory=dict)
    """By sequence group of the item's side."""
    counts: tuple[PairCount, ...] = ()
    """Numeric features that follow from the user's history and the ad's category."""

    @staticmethod
    def of_rows(rows: EncodedRows, schema: Schema, spec: InputSpec) -> "AdFeatures":
        """Features of ads from encoded rows, row i being ad i.

        Args:
            rows: One row for each ad; only its item fields are read.
            schema: Which fields are the item's.
            spec: Inputs of the models, in order.

        Raises:
            DataError: The rows lack an item field.
            SchemaError: A sequence group mixes fields of the item with others.
        """
        of_item = {item.name for item in schema.fields if item.side == "item"}
        known = {*rows.ids, *rows.numeric}
        for name in (*(item.name for item in spec.categorical), *spec.numeric):
            if name in of_item and name not in known:
                raise DataError(
                    f"ads: rows must hold the item field {name!r}, got {', '.join(sorted(known))}. "
                    f"Encode the ads with the schema of the models."
                )
        id_columns = [at for at, item in enumerate(spec.categorical) if item.name in of_item]
        numeric_columns = [at for at, name in enumerate(spec.numeric) if name in of_item]
        ids, numeric = np.empty((rows.num_rows, 0), np.int64), np.empty((rows.num_rows, 0))
        if id_columns:
            ids = np.stack([rows.ids[spec.categorical[at].name] for at in id_columns], axis=1)
        if numeric_columns:
            numeric = np.stack([rows.numeric[spec.numeric[at]] for at in numeric_columns], axis=1)
        return AdFeatures(
            ids=torch.from_numpy(ids.astype(np.int64)),
            id_columns=torch.tensor(id_columns, dtype=torch.int64),
            numeric=torch.from_numpy(numeric.astype(np.float32)),
            numeric_columns=torch.tensor(numeric_columns, dtype=torch.int64),
            sequences=_item_sequences(rows, of_item, spec),
            counts=pair_counts(spec),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def of_ads(self, ads: Tensor) -> Batch:
        """A batch of the item's inputs alone, as ``side_batch`` gives them.

        Args:
            ads: (P,) int64 ads, a row for each.
        """
        return Batch(
            numeric=self.numeric.index_select(0, ads),
            ids=self.ids.index_select(0, ads),
            labels=self.numeric.new_empty(len(ads), 0),
            weights=self.numeric.new_ones(len(ads)),
            sequences={name: words.take(ads) for name, words in self.sequences.items()},
        )

    def of_inputs(self, items: Batch) -> "AdFeatures":
        """Features of other ads, or of these at another time.

        Args:
            items: The item's inputs alone, as :meth:`of_ads` gives them, a row for each ad.
        """
        return replace(self, ids=items.ids, numeric=items.numeric, sequences=items.sequences)

    def pairs(
        self, features: Batch, rows: Tensor, ads: Tensor, *, groups: Collection[str] | None = None
    ) -> Batch:
        """A batch of P pairs: user and context of one side, item of the other.

        What counts events of the user by the ad's category is counted anew, in the events of
        ``features``.

        Args:
            features: Encoded fields of user and context, a row for each request.
            rows: (P,) int64 row in ``features`` of each pair.
            ads: (P,) int64 ad of each pair.
            groups: Sequence groups that the pairs hold, as histories are long; None: all.
        """
        ids = features.ids.to(torch.int64).index_select(0, rows)
        ids[:, self.id_columns] = self.ids.index_select(0, ads)
        numeric = features.numeric.index_select(0, rows)
        numeric[:, self.numeric_columns] = self.numeric.index_select(0, ads)
        sequences = {
            name: self.sequences[name].take(ads) if name in self.sequences else history.take(rows)
            for name, history in features.sequences.items()
            if groups is None or name in groups
        }
        for count in self.counts:
            history, of = features.sequences[count.group], rows
            if count.group in self.sequences:
                history, of = self.sequences[count.group].take(ads), torch.arange(len(ads))
            numeric[:, count.number] = count.of(history, of, ids[:, count.category])
        return Batch(
            numeric=numeric,
            ids=ids,
            labels=features.labels.index_select(0, rows),
            weights=features.weights.index_select(0, rows),
            sequences=sequences,
        )


class RankerStage(BatchStage):
    """Candidates by the total value that a model's predictions give them."""

    def __init__(
        self,
        ranker: nn.Module,
        tasks: tuple[Task, ...],
        features: AdFeatures,
        ads: AdTable,
        value: Valuation,
        *,
        calibration: Calibration = UNCALIBRATED,
        precision: torch.dtype = torch.float32,
        flops_per_pair: float | None = None,
    ) -> None:
        """Put the model into evaluation mode, for good.

        Args:
            ranker: A trained model of the catalog, on the CPU.
            tasks: What it predicts, in the order of its logits.
            features: Its inputs for every ad.
            ads: Bids and quality of the same ads.
            value: Combines predictions and bid.
            calibration: What predictions pass through before they are used.
            precision: Type of matrix products: float32 or bfloat16.
            flops_per_pair: Operations of one prediction, for the trace; None: not known.

        Raises:
            DataError: Features and attributes are not of the same number of ads.
        """
        if len(features) != len(ads):
            raise DataError(
                f"RankerStage: features and ads must be of the same ads, got {len(features)} and "
                f"{len(ads)}. Make both from one list of ads."
            )
        self.tasks = tasks
        self._is_rounded = precision == torch.bfloat16
        self._ranker = rounded(ranker.eval()) if self._is_rounded else ranker.eval()
        self._features = features
        self._ads = ads
        self._value = value
        self._calibration = calibration
        self._flops_per_pair = flops_per_pair

    def score_all(
        self, requests: Sequence[Request], candidates: Sequence[Candidates], keep: int
    ) -> list[Scored]:
        """Predictions and total values for several requests, in one call of the model.

        Raises:
            DataError: A request has no features.
        """
        del keep
        features = concatenate([features_of(request) for request in requests])
        # In one order, whatever theirs: matrix products round a row by its place in the batch.
        ads = np.concatenate([np.sort(its.ads) for its in candidates])
        counts = [len(its) for its in candidates]
        predictions = self.predict(features, np.repeat(np.arange(len(counts)), counts), ads)
        scores = self._ads.total_value(self._value, predictions, ads)
        found = Candidates(ads=ads, scores=scores, predictions=predictions)
        return [
            Scored(
                candidates=part,
                scored_pairs=len(part),
                flops=flops_of(self._flops_per_pair, len(part)),
            )
            for part in found.split(counts)
        ]

    @torch.inference_mode()
    def predict(
        self, features: Batch, rows: NDArray[np.int64], ads: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float64]]:
        """Predictions (P,) by task for P pairs of any requests.

        Args:
            features: Encoded fields of user and context, a row for each request.
            rows: (P,) row in ``features`` of each pair.
            ads: (P,) ad of each pair.
        """
        pairs = self._features.pairs(features, torch.from_numpy(rows), torch.from_numpy(ads))
        return self.predict_rows(pairs, ads)

    @torch.inference_mode()
    def predict_rows(self, rows: Batch, ads: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Predictions (P,) by task for P rows as they are, the item's fields included.

        Args:
            rows: Encoded fields of user, context and item.
            ads: (P,) ad of each row, which says how it is billed.
        """
        with torch.autocast("cpu", torch.bfloat16, enabled=self._is_rounded):
            logits = self._ranker(rows).logits
        found = probabilities_of(logits, self.tasks).numpy()
        predictions = {task.name: found[:, at].copy() for at, task in enumerate(self.tasks)}
        return self._calibration.apply(predictions, self._ads.billing[ads])


def features_of(request: Request, *, reader: str = "a ranker") -> Batch:
    """The request's features, which ``reader`` needs.

    Raises:
        DataError: It has none.
    """
    if request.features is None:
        raise DataError(
            f"request {request.request_id}: must have features for {reader}, got none. Encode "
            f"its user and context."
        )
    return request.features


def _item_sequences(rows: EncodedRows, of_item: set[str], spec: InputSpec) -> dict[str, Jagged]:
    sequences = {}
    for group in spec.sequences:
        members = [name for name in group.fields if name in of_item]
        if not members:
            continue
        if len(members) < len(group.fields) or group.name not in rows.sequences:
            raise SchemaError(
                f"sequence group {group.name!r}: its fields must all be the item's and be in the "
                f"ads' rows, or none be the item's, got {members} of {list(group.fields)}."
            )
        values, lengths = rows.sequences[group.name]
        sequences[group.name] = Jagged(
            values=torch.from_numpy(values),
            offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)),
        )
    return sequences
