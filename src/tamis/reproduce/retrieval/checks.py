"""What would expose a learnt index that is none: the checks of a published one, on real rows.

What no correct index can fail is asserted, and ends the process. The others depend on data and
training: each gives a number beside its bar, and the table says what becomes of it.
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from tamis.data.batch import Batch
from tamis.data.dataset import Dataset
from tamis.data.loader import Loader
from tamis.errors import TamisError
from tamis.evaluation import evaluate_task
from tamis.models.hsnn import HSNN
from tamis.nn.residual_index import nearest_path
from tamis.reproduce.retrieval.beams import BEAM_SHARES
from tamis.reproduce.retrieval.searchers import Prepared, beams_of, shifting_rows
from tamis.retrieval.occupancy import occupancy
from tamis.retrieval.search import Retriever, total_scores
from tamis.retrieval.searcher import Request
from tamis.retrieval.snapshot import IndexSnapshot, churn

_BATCHES = 15
_K = 100
_BY_HAND = 20_000
_TIES = 1e-4
_SEED = 2024


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A number and its bar."""

    check: str
    """What must hold."""
    value: float
    """What was measured."""
    holds: bool
    """Whether it does."""


def checks_of(
    model: HSNN, snapshot: IndexSnapshot, prepared: Prepared, dataset: Dataset
) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """All checks of a model and the index that it published.

    Args:
        model: In evaluation mode.
        snapshot: Its index.
        prepared: The corpus that was published, and requests.
        dataset: Rows that the model learnt from, and others.

    Returns:
        The checks as JSON values; and the NE of each level, the items' last, by what stands for
        nodes: ``soft``, ``hard``, which is served, or ``representative``.

    Raises:
        TamisError: Something does not hold that no correct index can fail.
    """
    _assert_published(snapshot, model, prepared)
    _assert_searched(model, snapshot, prepared.requests)
    _assert_cold(model, prepared)
    rows = _Rows.of(_shuffled(dataset, "test"), model, snapshot)
    forward = rows.ne_by_forward(model)
    found = [
        *_spread(snapshot),
        *_sharpness(model, snapshot),
        *_residuals(model, snapshot),
        *_learning(model, dataset),
        *_crosses(model, rows),
        *_calibration(model, _Rows.of(shifting_rows(dataset)[1], model, snapshot)),
        _gap(forward),
    ]
    return [
        {"check": check.check, "value": check.value, "holds": check.holds} for check in found
    ], forward


def _require(holds: bool, must: str, got: object) -> None:
    if not holds:
        raise TamisError(
            f"index: {must}, got {got}. The search is broken; its numbers mean nothing."
        )


def _assert_published(snapshot: IndexSnapshot, model: HSNN, prepared: Prepared) -> None:
    """One leaf for each item, no order of items, and no trace of what was added and removed."""
    sizes = snapshot.tree.bounds(len(snapshot.codebooks) - 1).diff()
    _require(
        int(sizes.sum()) == snapshot.num_items == len(snapshot.members.ids.unique()),
        "every item must be under exactly one leaf",
        f"{int(sizes.sum())} under leaves for {snapshot.num_items} items",
    )
    reversed_corpus = [
        (ids.flip(0), items.take(torch.arange(len(ids) - 1, -1, -1)))
        for ids, items in reversed(prepared.corpus)
    ]
    moved = churn(snapshot, IndexSnapshot.publish(model, reversed_corpus))
    # Sums in another order may move an item that is as near to two nodes, and nothing else.
    _require(max(moved) <= _TIES, "an index must not depend on the order of items", moved)
    standing = snapshot.members.ids[torch.cat(snapshot.tree.representatives).unique()]
    gone = standing[: max(1, len(standing) // 2)]
    if len(gone) == snapshot.num_items:
        return
    left = snapshot.remove(gone)
    members = left.members.ids[torch.cat(left.tree.representatives)]
    _require(
        not bool(torch.isin(members, gone).any()),
        "a removed item must not stand for a node",
        int(torch.isin(members, gone).sum()),
    )
    ids, items = prepared.corpus[0]
    new = ids[:10] + int(snapshot.members.ids.max()) + 1
    added = snapshot.add(model, new, items.take(torch.arange(len(new))))
    _require(
        added.remove(new).version == snapshot.version,
        "adding and removing items must give the same index",
        "another version",
    )


def _assert_searched(model: HSNN, snapshot: IndexSnapshot, requests: list[Request]) -> None:
    """Full beams score everything and find what scoring by hand finds; narrow ones score less."""
    retriever, request = Retriever(model, snapshot), requests[0]
    everything = snapshot.tree.num_nodes
    k = min(_K, snapshot.tree.num_items)
    found = retriever.search(request, k, everything)
    pairs = [level.pairs for level in found.trace.levels]
    _require(
        pairs == [*everything, snapshot.tree.num_items],
        "full beams must score every node and item once",
        pairs,
    )
    others = _some(snapshot.members.ids, _BY_HAND)
    others = others[~torch.isin(others, found.ids)]
    own, rest = (_scores_by_hand(model, snapshot, request, ids) for ids in (found.ids, others))
    _require(
        torch.allclose(found.scores, own, rtol=1e-4, atol=1e-6),
        "full beams must give the scores of every level on every item",
        f"scores that differ by {float((found.scores - own).abs().max())}",
    )
    _require(
        not len(rest) or float(rest.max()) <= float(own.min()) + 1e-4,
        "full beams must find what scoring everything finds",
        f"a better item, {float(rest.max()) if len(rest) else 0.0} above {float(own.min())}",
    )
    for beams in ((1,) * len(everything), beams_of(everything, BEAM_SHARES[-1])):
        if beams[-1] == everything[-1]:
            continue
        for one in requests[:10]:
            scored = retriever.search(one, k, beams).trace.levels[-1].pairs
            _require(
                scored < snapshot.num_items,
                "fewer beams must score fewer items",
                f"all {scored} under beams {beams} of {everything}",
            )


def _assert_cold(model: HSNN, prepared: Prepared) -> None:
    """Items without a row in the id's table are where their content puts them."""
    column, token = model.place_of_id
    if token is None:
        return
    for _, items in prepared.corpus:
        unknown = items.take((items.ids[:, column] == 0).nonzero().squeeze(1))
        if not unknown.num_rows:
            continue
        with torch.no_grad():
            seen, hidden = (model.encode_items(unknown, by_content=by) for by in (False, True))
        _require(
            torch.equal(seen, hidden),
            "items without an id must not depend on the table of ids",
            f"vectors that differ by {float((seen - hidden).abs().max())}",
        )


def _some(ids: Tensor, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(_SEED)
    return ids[torch.randperm(len(ids), generator=generator)[:count]]


def _scores_by_hand(
    model: HSNN, snapshot: IndexSnapshot, request: Request, ids: Int[Tensor, " C"]
) -> Float[Tensor, " C"]:
    """Scores of some items without any tree: every level, on the nodes nearest to the items."""
    order = torch.argsort(snapshot.members.ids)
    items = snapshot.members.vectors[order[torch.searchsorted(snapshot.members.ids[order], ids)]]
    vectors = (*nearest_path(items, snapshot.codebooks)[1], items)
    with torch.inference_mode():
        users = model.encode_user(request.user)
        outputs = []
        for level, own in enumerate(vectors):
            is_item = level == model.num_levels - 1
            pairs = request.pairs(ids) if is_item and request.pairs is not None else None
            outputs.append(model.pair_logits(level, users[level], own, pairs))
        stacked = torch.stack(outputs, dim=1)
        return total_scores(model, model.num_levels - 1, stacked, ())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """Labelled rows whose items lie under occupied nodes."""

    batches: list[Batch]
    """The rows."""
    nodes: list[tuple[Tensor, ...]]
    """For each batch vectors (B, W) of the representatives, level by level."""

    @classmethod
    def of(cls, rows: Iterable[Batch], model: HSNN, snapshot: IndexSnapshot) -> "_Rows":
        batches, nodes = [], []
        for batch in rows:
            with torch.no_grad():
                codes, _ = nearest_path(model.encode_items(batch), snapshot.codebooks)
            places, is_there = _node_places(snapshot, codes)
            kept = is_there & ~batch.labels.isnan().any(1)
            if bool(kept.any()):
                places_kept = kept.nonzero().squeeze(1)
                batches.append(batch.take(places_kept))
                nodes.append(
                    tuple(
                        snapshot.members.vectors[chosen[own[places_kept]]]
                        for chosen, own in zip(snapshot.tree.representatives, places, strict=True)
                    )
                )
        return cls(batches=batches, nodes=nodes)

    def ne_by_forward(self, model: HSNN) -> dict[str, list[float]]:
        """NE of each level, the first task's, by what index levels see."""
        return {
            "soft": self.ne(lambda batch, _: model.level_logits(batch, "soft")),
            "hard": self.ne(lambda batch, _: model.level_logits(batch, "hard")),
            "representative": self.ne(model.level_logits),
        }

    def ne(self, logits_of: Callable[[Batch, tuple[Tensor, ...]], Tensor]) -> list[float]:
        """NE of each level."""
        predicted = self.predict(logits_of)
        labels = torch.cat([batch.labels[:, 0] for batch in self.batches]).numpy()
        weights = torch.cat([batch.weights for batch in self.batches]).numpy()
        found = []
        for level in range(predicted.shape[1]):
            metrics = evaluate_task(labels, predicted[:, level], weights=weights, groups=None)
            found.append(metrics.ne)
        return found

    def predict(
        self, logits_of: Callable[[Batch, tuple[Tensor, ...]], Tensor]
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Probabilities (rows, N) of the first task at each level."""
        with torch.inference_mode():
            parts = [
                logits_of(batch, nodes)[:, :, 0].double().sigmoid()
                for batch, nodes in zip(self.batches, self.nodes, strict=True)
            ]
        return torch.cat(parts).numpy()


def _shuffled(dataset: Dataset, split: str) -> Iterator[Batch]:
    loader = Loader(dataset.split(split), dataset.spec, batch_size=4096, seed=_SEED, prefetch=1)
    return itertools.islice(loader.epoch(0), _BATCHES)


def _node_places(
    snapshot: IndexSnapshot, codes: Int[Tensor, "B L"]
) -> tuple[list[Int[Tensor, " B"]], Tensor]:
    """The node of each path at each level, and whether it is occupied at all of them."""
    places, is_there = [], torch.ones(len(codes), dtype=torch.bool)
    path = torch.zeros(len(codes), dtype=torch.int64)
    known = torch.zeros(snapshot.num_items, dtype=torch.int64)
    for level, centres in enumerate(snapshot.codebooks):
        path = path * len(centres) + codes[:, level]
        known = known * len(centres) + snapshot.members.codes[:, level]
        nodes = known[snapshot.tree.bounds(level)[:-1]]  # ascending, as the tree is sorted
        place = torch.searchsorted(nodes, path).clamp_max(len(nodes) - 1)
        is_there &= nodes[place] == path
        places.append(place)
    return places, is_there


def _gap(forward: dict[str, list[float]]) -> Check:
    pairs = zip(forward["soft"], forward["hard"], strict=True)
    gap = max(abs(hard - soft) / soft for soft, hard in pairs)
    return Check(
        check="NE of every level with soft nodes and with those that are served within 0.1 %",
        value=gap,
        holds=gap <= 1e-3,
    )


def _spread(snapshot: IndexSnapshot) -> list[Check]:
    checks = []
    for level, found in enumerate(occupancy(snapshot), start=1):
        share = found.perplexity / found.codes
        checks += [
            Check(
                check=f"level {level}: perplexity at least half of the codes",
                value=share,
                holds=share >= 0.5,
            ),
            Check(
                check=f"level {level}: at most a tenth of the codes dead",
                value=found.dead_share,
                holds=found.dead_share <= 0.1,
            ),
            Check(
                check=f"level {level}: largest node at most 10 times the mean",
                value=found.largest_to_mean,
                holds=found.largest_to_mean <= 10,
            ),
        ]
    return checks


def _sharpness(model: HSNN, snapshot: IndexSnapshot) -> list[Check]:
    """Soft memberships are sharp at the end, and different items are at different nodes."""
    with torch.no_grad():
        soft = model.index.soft(snapshot.members.vectors)
    checks = []
    for level, (weights, nodes) in enumerate(zip(soft.weights, soft.nodes, strict=True), start=1):
        variance = float(nodes.var(0).sum())
        checks.append(
            Check(
                check=f"level {level}: nodes differ between items",
                value=variance,
                holds=variance > 1e-4,
            )
        )
        if model.config.index_learning == "lti":
            entropy = float(torch.special.entr(weights).sum(1).mean())
            checks.append(
                Check(
                    check=f"level {level}: entropy of memberships below 0.5 nat",
                    value=entropy,
                    holds=entropy < 0.5,
                )
            )
    return checks


def _residuals(model: HSNN, snapshot: IndexSnapshot) -> list[Check]:
    """Each level describes what the ones before left over, and its codes carry information."""
    vectors = snapshot.members.vectors
    with torch.no_grad():
        hard = model.index.hard(vectors)
    norms = [float(residual.norm(dim=1).mean()) for residual in hard.residuals]
    steps = np.diff(norms)
    checks = [
        Check(
            check="mean length of residuals falls with every level",
            value=float(steps.max()),
            holds=bool((steps < 0).all()),
        )
    ]
    if len(model.codebooks) > 1:
        generator = torch.Generator().manual_seed(_SEED)
        order = torch.randperm(len(vectors), generator=generator)
        second = hard.nodes[1] - hard.nodes[0]
        shuffled = float((vectors - hard.nodes[0] - second[order]).norm(dim=1).mean())
        checks.append(
            Check(
                check="shuffled codes of the second level leave more over",
                value=shuffled - norms[2],
                holds=shuffled > norms[2],
            )
        )
    return checks


def _learning(model: HSNN, dataset: Dataset) -> list[Check]:
    """User feedback on nodes of the first level moves codebooks and item tower."""
    if model.config.index_learning != "lti":
        return []
    copied = copy.deepcopy(model).train()
    batch = next(_shuffled(dataset, "train"))
    is_labelled = ~batch.labels[:, 0].isnan()
    logits = copied(batch).compared[0].logits[is_labelled, 0]
    F.binary_cross_entropy_with_logits(logits, batch.labels[is_labelled, 0]).backward()
    moved: dict[str, list[Tensor]] = {
        "codebook": [copied.codebooks[0]],
        "item tower": list(copied.item_tower.parameters()),
    }
    checks = []
    for name, parameters in moved.items():
        squares = [float(p.grad.square().sum()) for p in parameters if p.grad is not None]
        norm = sum(squares) ** 0.5
        checks.append(
            Check(check=f"feedback on nodes moves the {name}", value=norm, holds=norm > 0)
        )
    return checks


def _crosses(model: HSNN, rows: _Rows) -> list[Check]:
    """Features of pairs matter: those of other pairs make the items' level worse."""
    columns = list(model.spec.numeric_of("context"))
    if not columns:
        return []
    generator = torch.Generator().manual_seed(_SEED)

    def permuted(batch: Batch, nodes: tuple[Tensor, ...]) -> Tensor:
        numeric = batch.numeric.clone()
        order = torch.randperm(batch.num_rows, generator=generator)
        numeric[:, columns] = batch.numeric[order][:, columns]
        return model.level_logits(replace(batch, numeric=numeric), nodes)

    loss = rows.ne(permuted)[-1] - rows.ne(model.level_logits)[-1]
    return [Check(check="permuted features of pairs raise the NE", value=loss, holds=loss > 0)]


def _calibration(model: HSNN, rows: _Rows) -> list[Check]:
    """Sum of predictions over sum of labels, with the nodes that are served.

    The rows are of the days that trained, others than those that levels were shifted to. On later
    days rates are others: in the market of 200,000 ads one with a fifth of all impressions dies on
    the tenth day, and every model is several percent below the labels of the days after. What the
    items' level of a run, not shifted, is at there stands beside its NE.
    """
    predicted = rows.predict(lambda batch, _: model.level_logits(batch, "hard"))
    labels = torch.cat([batch.labels[:, 0] for batch in rows.batches]).numpy()
    weights = torch.cat([batch.weights for batch in rows.batches]).numpy()
    checks = []
    for level in range(predicted.shape[1]):
        ratio = float((weights * predicted[:, level]).sum() / (weights * labels).sum())
        checks.append(
            Check(
                check=f"level {level + 1}: shifted predictions add up to other labels within 2 %",
                value=ratio,
                holds=abs(ratio - 1) <= 0.02,
            )
        )
    return checks
