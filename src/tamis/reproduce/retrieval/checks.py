"""What would expose a learnt index that is none: the checks of a published one, on real rows.

What no correct index can fail is asserted, and ends the process. The others depend on data and
training: each gives a number beside its bar, and the table says what becomes of it.
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tamis.data.batch import Batch
from tamis.data.dataset import Dataset
from tamis.data.loader import Loader
from tamis.data.sides import with_side
from tamis.errors import TamisError
from tamis.evaluation import evaluate_task
from tamis.models.hsnn import HSNN
from tamis.models.hsnn_level import Level
from tamis.nn.residual_index import nearest_path
from tamis.reproduce.retrieval.beams import BEAM_SHARES
from tamis.reproduce.retrieval.searchers import Prepared, beams_of, shifting_rows
from tamis.retrieval.occupancy import occupancy
from tamis.retrieval.search import Retriever, total_scores
from tamis.retrieval.searcher import Request
from tamis.retrieval.snapshot import IndexSnapshot, churn

CHECKS_VERSION = 2
"""To be raised when checks ask something else, or code changes what an index learns: rows and
weights of another version are made anew."""
_BATCHES = 15
_K = 100
_BY_HAND = 20_000
_TIES = 1e-4
_SEED = 2024

_Array = NDArray[np.float64]
_Logits = Callable[[Batch, tuple[Tensor, ...]], Tensor]
"""From rows and the nodes above their items to logits (B, N, T) of every level."""


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
) -> dict[str, Any]:
    """All checks of a model and the index that it published.

    Args:
        model: In evaluation mode.
        snapshot: Its index.
        prepared: The corpus that was published, and requests.
        dataset: Rows that the model learnt from, and others.

    Returns:
        JSON values: ``checks``; and of test rows whose items lie under occupied nodes, level by
        level, the items' last: ``forward``, the NE by what stands for nodes, ``soft``, ``hard``,
        which is served, or ``representative``; ``served``, predictions over labels; and
        ``traffic``, how the positive ones spread over the nodes.

    Raises:
        TamisError: Something does not hold that no correct index can fail.
    """
    _assert_published(snapshot, model, prepared)
    _assert_searched(model, snapshot, prepared.requests)
    _assert_cold(model, prepared)
    rows = _Rows.of(_shuffled(dataset, "test"), model, snapshot)
    forward = rows.ne_by_forward()
    found = [
        *_spread(snapshot),
        *_sharpness(model, snapshot),
        *_residuals(model, snapshot),
        *_learning(model, dataset),
        *_crosses(rows),
        *_calibration(_Rows.of(shifting_rows(dataset)[1], model, snapshot)),
        _gap(forward),
    ]
    return {
        "checks": [asdict(check) for check in found],
        "forward": forward,
        "served": rows.calibration(),
        "traffic": [asdict(level) for level in occupancy(snapshot, rows.positive_nodes())],
    }


def _require(holds: bool, must: str, got: object) -> None:
    if not holds:
        raise TamisError(
            f"index: {must}, got {got}. The search is broken; its numbers mean nothing."
        )


def _assert_published(snapshot: IndexSnapshot, model: HSNN, prepared: Prepared) -> None:
    """One leaf for each item, no order of items, and no trace of what was added and removed."""
    tree, members = snapshot.tree, snapshot.members
    # Down every branch, as a search goes.
    places = torch.arange(tree.num_nodes[0])
    for level in range(len(snapshot.codebooks)):
        places, lengths = tree.expand(level, places)
    reached = members.ids[places].sort().values
    corpus = torch.cat([ids for ids, _ in prepared.corpus]).sort().values
    _require(
        torch.equal(reached, corpus),
        "every item must be under exactly one leaf",
        f"{len(reached)} under leaves, {len(reached.unique())} of them different, for "
        f"{len(corpus)} items",
    )
    leaves = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    paths = len(torch.cat([leaves.unsqueeze(1), members.codes[places]], dim=1).unique(dim=0))
    _require(
        paths == len(members.codes.unique(dim=0)) == tree.num_nodes[-1],
        "the items of a leaf must be those of one path",
        f"{paths} pairs of leaf and path for {tree.num_nodes[-1]} leaves",
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
    still = torch.isin(left.members.ids[torch.cat(left.tree.representatives)], gone)
    _require(not bool(still.any()), "a removed item must not stand for a node", int(still.sum()))
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
    wide = beams_of(everything, BEAM_SHARES[-1])
    for one in requests[:10]:
        scored, kept = _scored(model, retriever, one, wide)
        half = max(1, kept // 2)
        fewer, _ = _scored(model, retriever, one, (*wide[:-1], half))
        _require(
            fewer < scored or kept == half,
            "fewer beams must score fewer items",
            f"{fewer} under {half} nodes and {scored} under {kept}",
        )


def _scored(
    model: HSNN, retriever: Retriever, request: Request, beams: tuple[int, ...]
) -> tuple[int, int]:
    """Items that the items' network scored, by its own calls, and the leaves above them."""
    tree, calls = retriever.snapshot.tree, list[int]()
    network = cast(Level, model.levels[-1]).network
    hook = network.register_forward_hook(lambda _, __, logits: calls.append(len(logits)))
    try:
        found = retriever.search(request, tree.num_items, beams)
    finally:
        hook.remove()
    # All that was scored is asked for, so what is found tells which nodes were kept.
    order = torch.argsort(retriever.snapshot.members.ids)
    ids = retriever.snapshot.members.ids[order]
    places = order[torch.searchsorted(ids, found.ids)]
    for level, width in enumerate(beams):
        bounds = tree.bounds(level)
        nodes = (torch.searchsorted(bounds, places, right=True) - 1).unique()
        _require(
            len(nodes) <= width,
            "a search must keep no more nodes than its beams are wide",
            f"items under {len(nodes)} nodes of level {level + 1} by beams {beams}",
        )
    under = int(bounds.diff()[nodes].sum())
    _require(
        sum(calls) == under == len(found.ids) == found.trace.levels[-1].pairs,
        "the items that are scored must be those under the nodes that are kept",
        f"{sum(calls)} scored, {under} under {len(nodes)} nodes, {len(found.ids)} found",
    )
    return sum(calls), len(nodes)


def _assert_cold(model: HSNN, prepared: Prepared) -> None:
    """Items without a row in the id's table, and all by content, do not hang on what it holds."""
    column, token = model.place_of_id
    if token is None:
        return
    name = model.spec.categorical[column].table
    generator = torch.Generator().manual_seed(_SEED)
    other = copy.deepcopy(model)
    with torch.no_grad():
        own = other.tokens.tables.rows_of(name)
        own.copy_(torch.randn(own.shape, generator=generator))
        for _, items in prepared.corpus:
            is_unknown = items.ids[:, column] == 0
            content, hidden = (one.encode_items(items, by_content=True) for one in (model, other))
            apart = torch.cat([hidden - content, (other.encode_items(items) - content)[is_unknown]])
            _require(
                not bool(apart.any()),
                "items without an id must not depend on the table of ids",
                f"vectors that differ by {float(apart.abs().max())}",
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
    """Labelled rows whose items lie under occupied nodes, and who predicts them."""

    model: HSNN
    """In evaluation mode."""
    snapshot: IndexSnapshot
    """Its index."""
    batches: list[Batch]
    """The rows."""
    nodes: list[tuple[Tensor, ...]]
    """For each batch the node (B,) above each row's item, level by level."""

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
                nodes.append(tuple(own[places_kept] for own in places))
        return cls(model=model, snapshot=snapshot, batches=batches, nodes=nodes)

    def ne_by_forward(self) -> dict[str, list[float]]:
        """NE of each level, the first task's, by what index levels see."""
        members = self.snapshot.members.vectors
        standing = tuple(members[places] for places in self.snapshot.tree.representatives)
        return {
            "soft": self.ne(lambda batch, _: self.model.level_logits(batch, "soft")),
            "hard": self.ne(self.served()),
            "representative": self.ne(self.served(standing)),
        }

    def served(self, vectors: Sequence[Tensor] | None = None) -> _Logits:
        """Logits by vectors of all nodes, level by level; None: those that a search reads."""
        own = self.snapshot.node_vectors() if vectors is None else vectors
        return lambda batch, nodes: self.model.level_logits(
            batch, [all_[places] for all_, places in zip(own, nodes, strict=True)]
        )

    def ne(self, logits_of: _Logits) -> list[float]:
        """NE of each level."""
        predicted, labels, weights = self.predict(logits_of)
        found = []
        for level in range(predicted.shape[1]):
            metrics = evaluate_task(labels, predicted[:, level], weights=weights, groups=None)
            found.append(metrics.ne)
        return found

    def calibration(self) -> list[float]:
        """Sum of each level's predictions, as they are served, over the sum of labels."""
        predicted, labels, weights = self.predict(self.served())
        total = (weights[:, None] * predicted).sum(0)
        ratios: list[float] = (total / (weights * labels).sum()).tolist()
        return ratios

    def positive_nodes(self) -> tuple[Int[Tensor, " R"], ...]:
        """The nodes above the items of rows that are positives of the first task, by level."""
        pairs = list(zip(self.batches, self.nodes, strict=True))
        return tuple(
            torch.cat([nodes[level][batch.labels[:, 0] > 0] for batch, nodes in pairs])
            for level in range(len(self.snapshot.codebooks))
        )

    def predict(self, logits_of: _Logits) -> tuple[_Array, _Array, _Array]:
        """Probabilities (R, N) of the first task at each level, its labels and the weights (R,)."""
        with torch.inference_mode():
            parts = [
                logits_of(batch, nodes)[:, :, 0].double().sigmoid()
                for batch, nodes in zip(self.batches, self.nodes, strict=True)
            ]
        labels = torch.cat([batch.labels[:, 0] for batch in self.batches])
        weights = torch.cat([batch.weights for batch in self.batches])
        return torch.cat(parts).numpy(), labels.double().numpy(), weights.double().numpy()


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
    """User feedback on the nodes of each level moves its codebook, that of the first the tower."""
    if model.config.index_learning != "lti":
        return []
    copied = copy.deepcopy(model).train()
    batch = next(_shuffled(dataset, "train"))
    is_labelled = ~batch.labels[:, 0].isnan()
    compared = copied(batch).compared
    checks = []
    for level, codebook in enumerate(copied.codebooks, start=1):
        loss = F.binary_cross_entropy_with_logits(
            compared[level - 1].logits[is_labelled, 0], batch.labels[is_labelled, 0]
        )
        moved = {"codebook": [codebook]}
        if level == 1:
            moved["item tower"] = list(copied.item_tower.parameters())
        for name, parameters in moved.items():
            parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            norm = sum(float(part.square().sum()) for part in parts if part is not None) ** 0.5
            checks.append(
                Check(
                    check=f"level {level}: feedback on nodes moves the {name}",
                    value=norm,
                    holds=norm > 0,
                )
            )
    return checks


def _crosses(rows: _Rows) -> list[Check]:
    """Features of pairs matter: those of other pairs make the items' level worse.

    Index levels claim none: they see user and node.
    """
    if not rows.model.tokens.num_tokens["context"]:
        return []
    served = rows.served()
    generator = torch.Generator().manual_seed(_SEED)

    def permuted(batch: Batch, nodes: tuple[Tensor, ...]) -> Tensor:
        others = batch.take(torch.randperm(batch.num_rows, generator=generator))
        return served(with_side(batch, others, rows.model.spec, "context"), nodes)

    loss = rows.ne(permuted)[-1] - rows.ne(served)[-1]
    return [Check(check="permuted features of pairs raise the NE", value=loss, holds=loss > 0)]


def _calibration(rows: _Rows) -> list[Check]:
    """Sum of predictions over sum of labels, with the nodes that are served.

    The rows are of the days that trained, others than those that levels were shifted to. On later
    days rates are others: in the market of 200,000 ads one with a fifth of all impressions dies on
    the tenth day, and every model is several percent below the labels of the days after. What the
    shifted levels are at there stands in the row.
    """
    return [
        Check(
            check=f"level {level}: shifted predictions add up to other labels within 2 %",
            value=ratio,
            holds=abs(ratio - 1) <= 0.02,
        )
        for level, ratio in enumerate(rows.calibration(), start=1)
    ]
