"""Tables of retrieval: models to train, ways to search them, and what is claimed of both."""

from dataclasses import dataclass
from typing import Literal

MARKET = "market_ads:"
"""What the name of a simulated market's dataset begins with; the number of its ads follows."""

Method = Literal["popularity", "exact", "ann", "lightgcn", "network", "kmeans_tree", "rerank"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchRow:
    """One row: a trained model, and how it is searched."""

    name: str
    """Name of the row."""
    model: str = ""
    """Recipe of the model. Empty: none, as for popularity."""
    method: Method
    """How it is searched: ``popularity`` gives everybody the items with most positives; ``exact``
    multiplies all vectors; ``ann`` asks Faiss for the largest products; ``lightgcn`` multiplies
    those of LightGCN, which has a trainer of its own; ``network`` walks the model's index, or
    scores every item where it has none; ``kmeans_tree`` gives it, in place of its index, k-means
    within k-means of its item vectors, of as many levels and branches, whose nodes it scores by
    what validation users choose; ``rerank`` lets it order what the reference's index finds."""
    teacher: str = ""
    """Recipe of the model that labels the rows which nobody labelled, trained with the same seed.
    Empty: none."""
    is_checked: bool = False
    """Whether the table claims that every check of the row's index holds, and measures beams of
    every width. Ablations show what goes wrong without a part, so their checks are only reported,
    and their beams only as wide as comparisons need."""

    @property
    def has_ne(self) -> bool:
        """Whether the run of its model predicted what the row would.

        LightGCN only ranks, and under other nodes a network predicts something else.
        """
        return self.method not in ("lightgcn", "kmeans_tree")


@dataclass(frozen=True, kw_only=True, slots=True)
class Better:
    """A claim that one row is better than another, paired by seed."""

    better: str
    """Row that is claimed to be better."""
    worse: str
    """Row that it is compared with."""
    metric: Literal["recall", "ne"] = "recall"
    """The table's recall at 100, where more is better, or NE, where less is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedRecall:
    """Figures of a method that somebody else reported on the same test."""

    model: str
    """The method; it need not be a row."""
    recall: float
    """Recall at 20."""
    ndcg: float
    """NDCG at 20."""
    protocol: str
    """Who reported them, and in what the set-up differs from ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalTable:
    """One table: ways to search a corpus, over seeds."""

    name: str
    """Name of the table and of its files in ``results/``."""
    dataset: str
    """A public set that is a retrieval task, or ``market_ads:ADS`` for a simulated market."""
    recipes: str
    """Folder of the recipes below that of all recipes."""
    rows: tuple[SearchRow, ...]
    """In the order of the table."""
    reference: str
    """Row of two towers that every row is timed beside, and whose candidates are re-ranked."""
    indexed: tuple[str, ...]
    """Rows of learnt indexes; the first one is that of the bars, with two levels, and tells how
    well items are found that were never shown, where the log says what was."""
    rivals: tuple[str, ...]
    """Rows that the first index is compared with at equal latency, each at its best width."""
    approximate: str = ""
    """Row that looks for the reference's largest products through an index that is not learnt: it
    must recall about as much, for fewer operations."""
    large: str = ""
    """Row of the largest network by itself, on every item: what is to be kept."""
    separate: str = ""
    """Row like the first index whose index is learnt by itself: what joint learning must not be
    worse than."""
    comparisons: tuple[Better, ...] = ()
    """What is claimed of the rows beside the bars."""
    published: tuple[PublishedRecall, ...] = ()
    """Figures of others, which stand beside ours; nothing is claimed of them."""
    balance_removed: str = ""
    """Row whose index learnt without the balance of nodes; its nodes must be used less evenly."""
    short_queue: str = ""
    """Row whose balance is judged by one batch."""
    seeds: int = 3
    """Seeds 0 to seeds - 1."""
    requests: int = 1000
    """Users who are searched for, at most."""
    exhaustive: int = 100
    """How many of them a network also scores every node and item for. That takes ten times as long
    as beams, whose loss is known from fewer users than how much more one method finds, where each
    user tells as much as a hundred items of known value do."""

    def __post_init__(self) -> None:
        assert self.seeds > 1, "a standard deviation needs two seeds"
        names = {row.name for row in self.rows}
        said = {self.reference, self.large, self.separate, *self.indexed, *self.rivals}
        said |= {name for claim in self.comparisons for name in (claim.better, claim.worse)}
        said |= {self.approximate, self.balance_removed, self.short_queue}
        said -= {""}
        assert said <= names, f"{self.name}: not among its rows: {sorted(said - names)}"

    @property
    def tells_shown(self) -> bool:
        """Whether the log tells what was shown, as that of a market does.

        Elsewhere all is known of an item without positives is that nobody went for it: models saw
        it in histories and as what was drawn, and there are few.
        """
        return self.dataset.startswith(MARKET)

    @property
    def drawn(self) -> tuple[str, ...]:
        """Rows of the figure: indexes, then other models; no variants, nothing taught."""
        variants = tuple(f"{name}-" for name in self.indexed)
        others = (
            row.name
            for row in self.rows
            if row.model and not row.teacher and not row.name.startswith(variants)
        )
        return tuple(dict.fromkeys((*self.indexed, *others)))

    @property
    def models(self) -> tuple[str, ...]:
        """Recipes, each once."""
        names = [name for row in self.rows for name in (row.model, row.teacher) if name]
        return tuple(dict.fromkeys(names))

    def row(self, name: str) -> SearchRow:
        """A row by its name."""
        return next(row for row in self.rows if row.name == name)


_REMOVALS = ("no-schedule", "no-balance", "no-warmup")
_HSNN_ROWS = (
    SearchRow(name="popularity", method="popularity"),
    # Table 1: two towers, mixtures that score every item, an index of products, learnt indexes.
    SearchRow(name="two_tower", model="two_tower", method="exact"),
    # By ids alone, with published figures: whether two towers are weak.
    SearchRow(name="lightgcn", model="lightgcn", method="lightgcn"),
    *(
        SearchRow(name=f"monn-{size}", model=f"monn-{size}", method="network")
        for size in ("small", "medium", "large")
    ),
    SearchRow(name="ebr", model="two_tower", method="ann"),
    # By the network that scores the items of every index with two levels.
    SearchRow(name="rerank", model="monn-medium", method="rerank"),
    *(
        SearchRow(name=f"hsnn-{levels}", model=f"hsnn-{levels}", method="network", is_checked=True)
        for levels in (2, 3)
    ),
    # Taught by the large network what it thinks of ads that were drawn, not shown; and whether a
    # teacher is what two towers lack.
    SearchRow(name="hsnn-2-taught", model="hsnn-2", teacher="monn-large", method="network"),
    SearchRow(name="two_tower-taught", model="two_tower", teacher="monn-large", method="exact"),
    # The same networks over k-means within k-means of the same item vectors: what is left of hsnn-3
    # when the hierarchy stays and what was learnt of it goes.
    SearchRow(name="kmeans_tree", model="hsnn-3", method="kmeans_tree"),
    # Table 2, whose third row is hsnn-2, and table 3; each differs from hsnn-2 in one setting.
    *(
        SearchRow(name=f"hsnn-2-{name}", model=f"hsnn-2-{name}", method="network")
        for name in ("sil", "em", *_REMOVALS, "short-queue")
    ),
)
_HSNN_COMPARISONS = (
    *(
        Better(better=better, worse=worse, metric=metric)
        for metric in ("recall", "ne")
        for better, worse in (
            ("monn-small", "two_tower"),
            ("monn-medium", "monn-small"),
            ("monn-large", "monn-medium"),
            ("hsnn-2", "two_tower"),
            ("hsnn-3", "hsnn-2"),
            ("hsnn-2", "hsnn-2-sil"),
            ("hsnn-2", "hsnn-2-em"),
            ("hsnn-2-em", "hsnn-2-sil"),
            *(("hsnn-2", f"hsnn-2-{name}") for name in _REMOVALS),
        )
    ),
    Better(better="two_tower", worse="popularity"),
    Better(better="two_tower", worse="lightgcn"),
    Better(better="hsnn-2-taught", worse="hsnn-2"),
    Better(better="hsnn-2-taught", worse="two_tower-taught"),
    Better(better="two_tower-taught", worse="two_tower"),
    Better(better="hsnn-3", worse="kmeans_tree"),
    Better(better="hsnn-2", worse="popularity"),
)

# Ids tell nothing of an ad that was born after training, nor what a click on one is worth.
_ON_MARKET = tuple(row.name for row in _HSNN_ROWS if row.name != "lightgcn")
# Where nobody logged what was shown, rows that were drawn are negatives and need no teacher.
_BY_POSITIVES = tuple(row.name for row in _HSNN_ROWS if not row.teacher)
# LightGCN would not know what others read in histories: each user's first step and, when the test
# is answered, the one before it.
_BY_HISTORIES = tuple(name for name in _BY_POSITIVES if name != "lightgcn")
_GOWALLA_USERS = 500
# Of the methods that know who went where and nothing else; HILL adds pairs of a learnt index to
# NESCL. A fifth of each user's training places validates here, and no row of ours trains on it.
_HILL = (
    f"HILL (arXiv:2604.12965), table 3: trained on all training places of LightGCN's split, all "
    f"users tested; ours are trained without the fifth of them that validates, which no list may "
    f"hold either, and tested on {_GOWALLA_USERS} of the users"
)
_PUBLISHED_ON_GOWALLA = tuple(
    PublishedRecall(model=model, recall=recall, ndcg=ndcg, protocol=_HILL)
    for model, recall, ndcg in (
        ("BPR", 0.1627, 0.1378),
        ("YouTubeNet", 0.1754, 0.1473),
        ("LightGCN", 0.1830, 0.1554),
        ("SimpleX", 0.1872, 0.1557),
        ("BSPM-LM", 0.1901, 0.1570),
        ("NESCL", 0.1908, 0.1614),
        ("HILL", 0.1924, 0.1628),
    )
)
# For five times as many ads: who finds more at equal latency, and nothing else.
_AT_EQUAL_LATENCY = ("popularity", "two_tower", "ebr", "rerank", "hsnn-2")


def retrieval_tables() -> tuple[RetrievalTable, ...]:
    """Every table of retrieval."""
    return tuple(
        RetrievalTable(
            name=f"hsnn-{name}",
            dataset=dataset,
            recipes=recipes,
            rows=tuple(row for row in _HSNN_ROWS if row.name in names),
            reference="two_tower",
            indexed=tuple(name for name in ("hsnn-2", "hsnn-3") if name in names),
            rivals=("two_tower", "ebr", "rerank"),
            approximate="ebr",
            large=_if_among(names, "monn-large"),
            separate=_if_among(names, "hsnn-2-sil"),
            comparisons=_comparisons(names, is_market=dataset.startswith(MARKET)),
            balance_removed=_if_among(names, "hsnn-2-no-balance"),
            short_queue=_if_among(names, "hsnn-2-short-queue"),
            published=_PUBLISHED_ON_GOWALLA if name == "gowalla" else (),
            requests=requests,
            exhaustive=exhaustive,
        )
        for name, dataset, recipes, names, requests, exhaustive in (
            # What was shown and not clicked is known of the market alone. A hundred of its users
            # know gains over two towers to 2 points in a hundred, four hundred to 1.
            ("market", "market_ads:200000", "hsnn-market", _ON_MARKET, 400, 100),
            ("million", "market_ads:1000000", "hsnn-market", _AT_EQUAL_LATENCY, 100, 100),
            # Users went for one item each, which is found or not.
            ("sports", "amazon_sports_retrieval", "hsnn-sports", _BY_HISTORIES, 4000, 2000),
            ("gowalla", "gowalla", "hsnn-gowalla", _BY_POSITIVES, _GOWALLA_USERS, _GOWALLA_USERS),
        )
    )


def _comparisons(names: tuple[str, ...], *, is_market: bool) -> tuple[Better, ...]:
    """Claims of rows that a table has.

    By a softmax, which they learn where nobody logged what was shown, two towers know scores but
    for a constant of each user: NE is not what they are for.
    """
    return tuple(
        claim
        for claim in _HSNN_COMPARISONS
        if {claim.better, claim.worse} <= {*names}
        and (is_market or (claim.metric, claim.worse) != ("ne", "two_tower"))
    )


def _if_among(names: tuple[str, ...], name: str) -> str:
    return name if name in names else ""
