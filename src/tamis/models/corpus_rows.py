"""Which rows of a batch stand for the corpus, so that an index is one of its items alike."""

from jaxtyping import Float
from torch import Tensor

from tamis.data.batch import Batch

_LEAST_SHARE = 0.1


def corpus_rows(batch: Batch) -> Float[Tensor, " B"]:
    """1 for rows that stand for the corpus and 0 for others, whatever the rows weigh.

    Where a tenth of a batch or more has no label at all, those rows do: they are meant to show
    items drawn uniformly, as unlabelled rows of HSNN are. What is shown or wanted is popular, and
    an index learnt from it would give each of the most popular items a node. Where fewer rows have
    no label, as when some are late or missing by chance, all rows do.
    """
    is_unlabelled = batch.is_unlabelled
    is_enough = is_unlabelled.sum() >= _LEAST_SHARE * len(is_unlabelled)
    return (is_unlabelled | ~is_enough).to(batch.weights.dtype)
