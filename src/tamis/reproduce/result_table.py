"""What a table of trained models is made of: models, data, claims, and figures of others."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A figure that somebody else reported."""

    model: str
    """Model it is about, by its name in the catalog."""
    auc: float
    """Test AUC."""
    log_loss: float | None
    """Test log loss, nats, where it was reported."""
    protocol: str
    """Who measured it, and in what the set-up differs from ours."""
    task: str = ""
    """Task it is about. Empty: the first of the table."""
    gauc: float | None = None
    """Test GAUC, where it was reported."""
    tolerance: float = 0.0005
    """How far below it our mean AUC may be."""
    both_ways: bool = False
    """Whether our mean AUC may be no further above it either."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A claim that one model is better than another, tested over seeds."""

    better: str
    """Model that is claimed to be better."""
    worse: str
    """Model that it is compared with."""
    metric: Literal["ne", "auc", "gauc", "ece", "calibration"] = "ne"
    """AUC or GAUC; or NE, ECE or the distance of calibration from 1, where less is better."""
    task: str = ""
    """Task that is compared. Empty: the first of the table."""
    members_of_better: bool = False
    """Whether the mean of the members of ``better``, an ensemble, is compared instead of itself."""
    members_of_worse: bool = False
    """The same of ``worse``."""
    margin: float = 0.0
    """By how much at least. Negative: better, or worse by less than that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Average:
    """A row without a training of its own: the mean prediction of models trained apart."""

    name: str
    """Its name in the table."""
    of: tuple[str, ...]
    """Models whose predictions are averaged, all of the row's seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultTable:
    """One table: models on a dataset, over seeds."""

    name: str
    """Name of the table and of its files in ``results/``."""
    dataset: str
    """Public set, or ``market:ROWS`` for the simulated market with that many impressions."""
    models: tuple[str, ...]
    """Recipes ``<model>.toml`` of the table's folder, in the order of the table."""
    tasks: tuple[str, ...]
    """Tasks whose metrics are shown; the first one's are kept in full."""
    comparisons: tuple[Comparison, ...]
    """What is claimed of the models."""
    seeds: int = 5
    """Seeds 0 to seeds - 1."""
    published: tuple[Published, ...] = ()
    """Figures of others on the same rows."""
    averages: tuple[Average, ...] = ()
    """Rows that are averages of the models' predictions."""
    recipes: str = ""
    """Folder of the recipes below ``recipes/``. Empty: the table's name."""
    varied: str = ""
    """Model whose recipe the others change, each in a few settings. Empty: they are others."""

    def __post_init__(self) -> None:
        assert self.seeds > 1, "a standard deviation needs two seeds"
        names = {*self.models, *(average.name for average in self.averages)}
        assert not self.varied or self.varied in self.models, f"{self.name}: {self.varied}"
        claimed = {name for claim in self.comparisons for name in (claim.better, claim.worse)}
        parts = {name for average in self.averages for name in average.of}
        unknown = (claimed | parts | {figure.model for figure in self.published}) - names
        assert not unknown, f"{self.name}: not among its models: {sorted(unknown)}"
        tasks = {claim.task for claim in self.comparisons} - {""}
        tasks |= {figure.task for figure in self.published} - {""}
        assert tasks <= set(self.tasks), f"{self.name}: not among its tasks: {sorted(tasks)}"
        assert not any(
            claim.task and (claim.members_of_better or claim.members_of_worse)
            for claim in self.comparisons
        ), "members are compared on the first task"

    @property
    def chosen_on(self) -> Literal["validation", "test"]:
        """Split that chose the weights: BARS' own protocol has none but the test split."""
        return "test" if self.dataset.endswith("_bars") else "validation"

    def key_of(self, task: str) -> str:
        """How a row names a task: the first one's metrics stand by themselves, under no name."""
        return "" if task == self.tasks[0] else task


def beats(
    better: str, models: tuple[str, ...], *, metric: Literal["ne", "auc", "gauc"] = "ne"
) -> tuple[Comparison, ...]:
    """The claims that a model is better than each of the others."""
    rivals = (name for name in models if name != better)
    return tuple(Comparison(better=better, worse=rival, metric=metric) for rival in rivals)
