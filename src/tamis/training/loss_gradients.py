"""How hard each term of the training loss pulls at the weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tamis.data.batch import Batch
from tamis.data.schema import Task
from tamis.models.output import Output
from tamis.training.objective import training_loss

LABELS = "labels"


def loss_gradient_norms(
    model: nn.Module, batch: Batch, *, tasks: tuple[Task, ...], task_weights: Sequence[float]
) -> dict[str, float]:
    """Euclidean norm of the gradient of each term of the loss of a batch, over all weights.

    Args:
        model: As it is: in evaluation mode terms that exist only in training are left out.
        batch: Rows to look at.
        tasks: Kinds of the T tasks.
        task_weights: Weights of the T tasks in the loss.

    Returns:
        ``labels``, the loss of everything that is compared with labels; then the model's auxiliary
        losses by their names. Gradients and buffers of the model stay as they were.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = torch.tensor(task_weights, device=batch.labels.device)
    output: Output = model(batch)
    supervised = Output(logits=output.logits, supervised=output.supervised)
    terms = {LABELS: training_loss(supervised, batch.labels, batch.weights, tasks, weights)}
    for name, loss in output.auxiliary_losses.items():
        terms[name] = (loss * weights).sum() if loss.ndim else loss
    return {name: _norm(term, parameters) for name, term in terms.items()}


def _norm(term: Tensor, parameters: list[nn.Parameter]) -> float:
    if not term.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    squares = [
        (gradient.coalesce().values() if gradient.is_sparse else gradient).double().square().sum()
        for gradient in gradients
        if gradient is not None
    ]
    return float(torch.stack(squares).sum().sqrt())
