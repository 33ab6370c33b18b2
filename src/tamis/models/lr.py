"""Logistic regression on one-hot fields and numeric features."""

from dataclasses import dataclass

from torch import nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.models.output import Output
from tamis.nn.embedding import FirstOrder


@dataclass(frozen=True, kw_only=True, slots=True)
class LRConfig:
    """Logistic regression has no settings; its regularisation is the optimizer's."""


class LR(nn.Module):
    """One weight per category and numeric feature, for each task.

    Source:
        Richardson, Dominowska and Ragno, Predicting Clicks, WWW 2007.

    Differs from the source:
        Raw categories instead of engineered features.
    """

    def __init__(self, config: LRConfig, spec: InputSpec) -> None:  # noqa: ARG002
        """Build the weights; all start from 0."""
        super().__init__()
        self.first_order = FirstOrder(spec)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, T)."""
        return Output(logits=self.first_order(batch))
