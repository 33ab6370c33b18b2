"""A trained model that labels the rows which nobody labelled."""

from dataclasses import replace

import torch

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.models.output import probabilities_of
from tamis.models.trained import TrainedModel


class Teacher:
    """Labels rows without any label by what a trained model predicts for them.

    What was never shown has no label, and what is shown was chosen; a student that is taught such
    rows learns what its teacher thinks of everything. Rows with a label of some task are left as
    they are.

    Source:
        HSNN, arXiv:2408.06653, the distillation loss of rows that were not shown, with soft labels
        of "a stronger model".

    Differs from the source:
        Only rows without a label of any task are taught, by a model that does not learn meanwhile.
        Of HSNN all levels learn from it, that of the items too.
    """

    def __init__(
        self,
        model: TrainedModel,
        spec: InputSpec,
        *,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        """Take the model to a device.

        Args:
            model: What predicts; it is left in evaluation mode.
            spec: Inputs and tasks of the rows.
            device: Where batches are.
            precision: Type of matrix products.

        Raises:
            ConfigError: The model has other inputs or tasks.
        """
        if model.spec != spec:
            raise ConfigError(
                "teacher: must be a model of the same inputs and tasks, got another spec. Train it "
                "on the same dataset, or on one of the same encoders."
            )
        self._module = model.module.to(device).eval()
        self._tasks = model.spec.tasks
        self._precision = precision

    @torch.no_grad()
    def label(self, batch: Batch) -> Batch:
        """The batch, every row of which has a label; those of the teacher are marked."""
        is_taught = batch.labels.isnan().all(1)
        rows = is_taught.nonzero().squeeze(1)
        if not len(rows):
            return replace(batch, is_taught=is_taught)
        device = batch.labels.device.type
        with torch.autocast(device, torch.bfloat16, self._precision == torch.bfloat16):
            logits = self._module(batch.take(rows)).logits
        labels = probabilities_of(logits, self._tasks).to(batch.labels.dtype)
        return replace(batch, labels=batch.labels.index_copy(0, rows, labels), is_taught=is_taught)
