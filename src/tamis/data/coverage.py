"""Which splits have rows with each label, and with categories that training knows.

Where none has any, a person should know: nothing else shows it before a run is over.
"""

import numpy as np
from numpy.typing import NDArray

from tamis.data.dataset import EncodedRows
from tamis.data.schema import Field, Schema, Task
from tamis.data.splits import SPLIT_NAMES, SplitConfig

_WITHOUT_LABELS = {
    "train": "nothing can be learned of it",
    "valid": "early stopping and calibration cannot use it",
    "test": "it cannot be measured there",
}

_LEAST_ROWS = 50
"""Of a split: fewer may lack the values of a field by chance."""


class Coverage:
    """What was met in each split while its rows were encoded."""

    def __init__(self, schema: Schema, split: SplitConfig) -> None:
        """Start with nothing met.

        Args:
            schema: Of the rows.
            split: How they are split; users of a split by user are new in each by design.
        """
        self._roles = schema.roles
        by_name = {item.name: item for item in schema.fields}
        self._fields = [
            item
            for item in schema.fields
            if item.kind == "categorical"
            and by_name[item.shares or item.name].encoding == "vocabulary"
            and not by_name[item.shares or item.name].vectors
            and not (split.by == "user" and item.source == schema.roles.user)
        ]
        self._tasks = schema.tasks
        self._rows: dict[str, int] = {}
        self._bounds: dict[tuple[str, str], tuple[float, float]] = {}
        self._known: set[tuple[str, str]] = set()

    def add(self, rows: EncodedRows, split_of_row: NDArray[np.int8]) -> None:
        """Take in encoded rows, which are of the splits (n,) in ``SPLIT_NAMES``."""
        for index, split in enumerate(SPLIT_NAMES):
            mask = split_of_row == index
            if not mask.any():
                continue
            self._rows[split] = self._rows.get(split, 0) + int(mask.sum())
            for task in self._tasks:
                labels = rows.labels[task.name][mask]
                labels = labels[~np.isnan(labels)]
                if len(labels):
                    low, high = float(labels.min()), float(labels.max())
                    before = self._bounds.get((split, task.name), (low, high))
                    self._bounds[split, task.name] = (min(low, before[0]), max(high, before[1]))
            for item in self._fields:
                if (split, item.name) not in self._known and rows.ids[item.name][mask].any():
                    self._known.add((split, item.name))

    def warnings(self) -> list[str]:
        """What each split lacks: labels first, then fields."""
        found = [
            text
            for task in self._tasks
            for split in SPLIT_NAMES
            if split in self._rows and (text := self._label_doubt(task, split))
        ]
        return found + [text for item in self._fields if (text := self._doubt(item))]

    def _label_doubt(self, task: Task, split: str) -> str:
        bounds = self._bounds.get((split, task.name))
        if bounds is None:
            return f"label {task.name}: no row of {split} has it, so that {_WITHOUT_LABELS[split]}"
        if task.kind == "binary" and bounds[0] == bounds[1]:
            return (
                f"label {task.name}: it is {bounds[0]:g} in all rows of {split}, so that NE and "
                f"AUC are undefined there; split in another way, or add rows"
            )
        return ""

    def _doubt(self, item: Field) -> str:
        lacking = [
            name
            for name in SPLIT_NAMES
            if name in self._rows and (name, item.name) not in self._known
        ]
        has_few_rows = any(self._rows[name] < _LEAST_ROWS for name in lacking)
        if not lacking or "train" in lacking or has_few_rows:
            return ""
        advice = "take the field out of the schema"
        if not self._roles.request:
            advice += f", and set roles.request = {item.source!r} if it names the request"
        return (
            f"{item.name}: no row of {' and '.join(lacking)} has a value that training rows have, "
            f"so that nothing learned of it serves there; {advice}"
        )
