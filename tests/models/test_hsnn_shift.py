"""HSNN: levels that are shifted until they predict as much as there are labels."""

import copy

import pytest
import torch

from tamis.data.batch import Batch
from tamis.data.schema import CategoricalInput, InputSpec, Table, Task
from tamis.models.hsnn import HSNN, HSNNConfig
from tamis.models.monn import MoNNConfig

_USERS, _ITEMS = 30, 48
_LEVEL = MoNNConfig(user_tokens=2, user_dim=6, width=6, module_tokens=2, head_units=(8,))
_CONFIG = HSNNConfig(
    embedding_dim=6, levels=(_LEVEL,) * 3, codebooks=(6, 4), item_dim=8, init_std=0.5
)
_SPEC = InputSpec(
    numeric=("affinity",),
    categorical=(
        CategoricalInput(name="user", table="user", side="user"),
        CategoricalInput(name="item", table="item", side="item"),
    ),
    sequences=(),
    tables=(Table(name="user", num_rows=_USERS + 1), Table(name="item", num_rows=_ITEMS + 1)),
    tasks=(Task(name="click"), Task(name="buy", observed_when="click")),
    item="item",
)


def _model() -> HSNN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return HSNN(_CONFIG, _SPEC).eval()


def _batch(rows: int, seed: int) -> Batch:
    """Clicks at random, and buys of those who clicked; of others nobody knows."""
    generator = torch.Generator().manual_seed(seed)
    users = torch.randint(1, _USERS + 1, (rows,), generator=generator)
    items = torch.randint(1, _ITEMS + 1, (rows,), generator=generator)
    click, buy = (torch.rand(2, rows, generator=generator) < 0.4).float()
    return Batch(
        numeric=torch.randn(rows, 1, generator=generator),
        ids=torch.stack([users, items], dim=1).int(),
        labels=torch.stack([click, torch.where(click == 1, buy, torch.nan)], dim=1),
        weights=torch.ones(rows),
    )


def test_shifted_levels_predict_as_much_as_there_are_labels() -> None:
    model = _model()
    with torch.no_grad():
        for level in model.levels:
            level.shift += 0.3
    rows = [_batch(400, seed=70), _batch(300, seed=71)]
    rows[0].weights[:100] = 5.0
    before = [model.level_logits(some, "hard") for some in rows]

    model.shift_to(iter(rows))

    logits = torch.cat([model.level_logits(some, "hard") for some in rows])
    labels, weights = (
        torch.cat([getattr(some, name) for some in rows]) for name in ("labels", "weights")
    )
    for task in range(2):
        known = ~labels[:, task].isnan()
        predicted = (weights[known, None] * logits[known, :, task].sigmoid()).sum(0)
        wanted = (weights * labels[:, task])[known].sum()
        torch.testing.assert_close(predicted, wanted.expand(3), rtol=1e-4, atol=0.0)
    # A shift and nothing else, of each level and task.
    moved = logits - torch.cat(before)
    torch.testing.assert_close(moved, moved[:1].expand_as(moved), rtol=0.0, atol=1e-5)


def test_level_is_not_shifted_by_rows_of_one_kind_or_while_training() -> None:
    model = _model()
    rows = _batch(50, seed=72)
    rows.labels[:, 0], rows.labels[:, 1] = 1.0, torch.nan
    before = copy.deepcopy(model.state_dict())
    model.shift_to([rows])
    torch.testing.assert_close(model.state_dict(), before)
    with pytest.raises(ValueError, match=r"Call eval\(\)"):
        model.train().shift_to([rows])
    with pytest.raises(ValueError, match="got no batch"):
        model.eval().shift_to([])
