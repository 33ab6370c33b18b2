"""Which columns a model of FuxiCTR attends to, and where tamis attends otherwise."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tamis.data.schema import Field

# Keys of the models that attend to histories: candidates, histories, and histories of negatives.
_KEYS = {
    "BST": ("bst_target_field", "bst_sequence_field", ""),
    "DIEN": ("dien_target_field", "dien_sequence_field", "dien_neg_seq_field"),
    "DIN": ("din_target_field", "din_sequence_field", ""),
    "DMIN": ("target_field", "sequence_field", "neg_seq_field"),
    "DMR": ("target_field", "sequence_field", "neg_seq_field"),
    "TransAct": ("target_item_field", "sequence_item_field", ""),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """Which columns a model of FuxiCTR attends to; nothing for one that attends to none."""

    model: str = ""
    """Its name."""
    key: str = ""
    """Where the experiment names the histories."""
    targets: tuple[tuple[str, ...], ...] = ()
    """Columns of the candidate with which those of each history are compared."""
    histories: tuple[tuple[str, ...], ...] = ()
    """Columns of each history."""
    negatives: frozenset[str] = frozenset()
    """Columns of histories of negatives, which are no input."""

    @property
    def groups(self) -> dict[str, str]:
        """Group of columns that are read together, as ``[!!python/tuple [item_his, cate_his]]``."""
        return {
            name: f"history{place or ''}"
            for place, together in enumerate(self.histories)
            for name in together
            if len(together) > 1
        }

    def told_of(self, fields: Sequence[Field]) -> Iterator[str]:
        """Histories that tamis attends to otherwise: to each, by the field that it shares with."""
        if not self.model:
            return
        shares = {field.name: field.shares for field in fields if field.kind == "sequence"}
        named = {name for together in self.histories for name in together}
        for name in shares:
            if name not in named:
                yield (
                    f"{name}: {self.key} does not name it, so that FuxiCTR pools it; in tamis "
                    f"{self.model} attends to every history."
                )
        for targets, together in zip(self.targets, self.histories, strict=False):
            for target, name in zip(targets, together, strict=False):
                if shares.get(name, target) != target:
                    yield (
                        f"{name}: FuxiCTR compares it with {target}, whose table it does not "
                        f"share; tamis compares it with {shares[name] or 'a vector it learns'}."
                    )


def attention_of(model: Mapping[str, Any]) -> Attention:
    """What the settings of an experiment say, and FuxiCTR's defaults where they say nothing."""
    name = model.get("model")
    if not isinstance(name, str) or name not in _KEYS:
        return Attention()
    target, history, negative = _KEYS[name]
    negatives = model.get(negative, ("neg_click_history", "neg_cate_history")) if negative else None
    return Attention(
        model=name,
        key=history,
        targets=_together(model.get(target, ("item_id", "cate_id"))),
        histories=_together(model.get(history, ("click_history", "cate_history"))),
        negatives=frozenset(one for together in _together(negatives) for one in together),
    )


def _together(value: object) -> tuple[tuple[str, ...], ...]:
    """Columns that stand alone or, in a tuple, together."""
    entries = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(
        tuple(map(str, entry)) if isinstance(entry, list | tuple) else (str(entry),)
        for entry in entries
    )
