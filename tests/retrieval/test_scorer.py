"""What retrieval needs of a model: HSNN has it, and so has a model that knows no tamis."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tamis.data.batch import Batch
from tamis.retrieval.scorer import Scorer
from tamis.retrieval.search import Retriever
from tamis.retrieval.searcher import Request
from tamis.retrieval.snapshot import IndexSnapshot


class _Dot:
    """A user is a vector, and so are nodes and items; every level is their inner product."""

    training = False
    num_levels = 2

    def __init__(self, centres: Tensor) -> None:
        self.centres = centres

    @property
    def codebooks(self) -> Sequence[Tensor]:
        return [self.centres]

    def check_index(self) -> None: ...

    def encode_items(self, items: Batch, *, by_content: bool = False) -> Tensor:
        return items.numeric

    def encode_user(self, users: Batch) -> Sequence[Tensor]:
        return [users.numeric, users.numeric]

    def pair_logits(
        self,
        level: int,
        user: Tensor,
        items: Tensor,
        pairs: Batch | None,
        rows: Tensor | None = None,
    ) -> Tensor:
        return (items * (user if rows is None else user[rows])).sum(1, keepdim=True)

    def ensemble(self, level: int, logits: Tensor) -> Tensor:
        return logits[:, level]

    def count_flops(self) -> tuple[int, tuple[int, ...]]:
        return 0, (4, 4)

    def state_dict(self) -> Mapping[str, Any]:
        return {"centres": self.centres}


def _batch(numbers: list[list[float]]) -> Batch:
    rows = len(numbers)
    return Batch(
        numeric=torch.tensor(numbers),
        ids=torch.zeros(rows, 0, dtype=torch.int32),
        labels=torch.zeros(rows, 1),
        weights=torch.ones(rows),
    )


def test_hsnn_and_a_strangers_model_are_scorers(world: Any) -> None:
    assert isinstance(world.model, Scorer)
    assert isinstance(_Dot(torch.eye(2)), Scorer)
    assert not isinstance(object(), Scorer)


def test_search_by_inner_products_known_answer() -> None:
    # Near (1, 0): items 1 and 2, of which 2 is nearer; near (0, 1): items 3 and 4, and 4 is nearer.
    model = _Dot(torch.eye(2))
    items = _batch([[0.5, 0.1], [0.9, 0.0], [0.4, 1.9], [0.1, 1.0]])
    retriever = Retriever(model, IndexSnapshot.publish(model, [(torch.arange(1, 5), items)]))
    request = Request(user=_batch([[2.0, 1.0]]))

    # The nodes are (1, 0) and (0, 1), which score 2 and 1, so the first one is kept.
    found = retriever.search(request, 3, (1,))
    assert found.ids.tolist() == [2, 1]
    assert [(level.nodes, level.pairs, level.kept) for level in found.trace.levels] == [
        (2, 2, 1),
        (4, 2, 2),
    ]
    assert found.trace.flops == 4 * 2 + 4 * 2
    # Of all items the third is the best: 2 * 0.4 + 1.9 = 2.7.
    assert retriever.exact(request, 3).ids.tolist() == [3, 2, 4]
    torch.testing.assert_close(
        torch.logit(retriever.exact(request, 3).scores), torch.tensor([2.7, 1.8, 1.2])
    )
