"""What stands in a table of the early stage: cascades, their sizes, and the rankers compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tamis import config

Pools = Literal["impressed", "scored", "rejected"]
"""The furthest pool that is trained on; those before it are too."""
Judges = Literal["test", "valid"]
"""Requests that are judged on all their candidates: of later days, or those that validate."""
Head = Literal["served", "label"]
"""The head that serves, or that of the label; each is calibrated to its own targets."""
Parts = Literal["all", "billing", "bid decile"]
"""What parts the rows on which a head is calibrated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CascadeSizes:
    """How many of what a cascade has."""

    keep: int
    """Candidates K_e that the early stage keeps of a request."""
    slots: int
    """Candidates K_f that are shown; as many of the most valuable are golden."""
    train_requests: int
    """Requests whose rows train and validate, about so many."""
    test_requests: int
    """Requests that are judged on all their candidates, about so many."""
    scored_per_request: int = 10
    """Rows drawn from those that the final stage scored and nobody saw."""
    rejected_per_request: int = 10
    """Rows drawn from those that the early stage turned away."""
    exploration: float = 0.05
    """Share of the impressions that are drawn from all candidates, in [0, 1 / slots]."""
    weight_cap: float = 20.0
    """Largest weight of a row that stands for others."""

    def __post_init__(self) -> None:
        assert 0 < self.slots <= self.keep, "what is shown was kept"
        assert 0 <= self.exploration * self.slots <= 1, "one slot of a request explores"


@dataclass(frozen=True, kw_only=True, slots=True)
class MarketCascade:
    """A cascade in the simulated market, whose truth is known."""

    sizes: CascadeSizes
    """Of the cascade."""
    rows: int
    """Impressions of the whole market."""
    rows_per_ad: int
    """Impressions for each ad; with the rows they decide how many candidates a request has."""
    conversion_rate: float
    """Conversions per click; the other rules are the market's frozen ones."""
    days: tuple[int, int, int]
    """Days that train the final stage, that write the cascade's log, and that test."""

    @property
    def dataset(self) -> str:
        """Name of the data."""
        return f"market:{self.rows}"

    @property
    def tasks(self) -> tuple[str, str, str]:
        """Click, conversion and quality by name."""
        return "click", "conversion", "hide"


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicCascade:
    """A cascade simulated over what users of a public set did."""

    sizes: CascadeSizes
    """Of the cascade."""
    dataset: str
    """Name of the set among ``BEHAVIOURS``."""
    candidates: int
    """Candidates N_q of a request."""
    teacher_events: int
    """Most events that the final stage is trained on."""
    negatives: int
    """Items nobody chose beside each event of the final stage's and the oracle's rows."""
    quality_task: str
    """Name of the set's quality event."""

    @property
    def tasks(self) -> tuple[str, str, str]:
        """Click, conversion and quality by name."""
        return "click", "conversion", self.quality_task


@dataclass(frozen=True, kw_only=True, slots=True)
class OneModel:
    """One early-stage ranker for several tasks."""

    tasks: int
    """The first so many of (click, conversion, quality) are learned; for the rest of the value
    a constant stands."""
    pools: Pools = "rejected"
    """Rows that train."""
    distillation: Literal["separate", "mixed", "none"] = "separate"
    """Of the final stage's predictions."""
    distil_weight: float | None = None
    """Weight k of each distillation loss beside 1 of each label's; None is the recipe's."""
    settings: tuple[str, ...] = ()
    """Changes of the recipe, such as ``model.chain=true``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OneModelEach:
    """A ranker for each task, distilled, trained and served apart."""

    equal_cost: bool
    """Whether all together cost no more than the one model; else each is as large as that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Boosted:
    """LightGBM on the early stage's inputs, distilled."""

    objective: Literal["value", "rank", "parts"]
    """Total value by least squares, its order by lambdarank, or a model for each prediction; the
    first two see bid and billing too, which the value function applies to the parts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """An order that needs no training."""

    order: Literal["teacher", "incumbent", "chance"]
    """The final stage itself, the early stage that wrote the log, or all candidates alike."""


Variant = OneModel | OneModelEach | Boosted | Given
_KINDS: dict[str, type[Variant]] = {
    kind.__name__: kind for kind in (OneModel, OneModelEach, Boosted, Given)
}


def variant_to_json(variant: Variant) -> dict[str, Any]:
    """What :func:`variant_from_json` reads."""
    return {"kind": type(variant).__name__, **config.to_table(variant)}


def variant_from_json(record: Mapping[str, Any]) -> Variant:
    """A variant as :func:`variant_to_json` wrote it.

    Raises:
        ConfigError: A key is unknown or mistyped.
    """
    values = {key: value for key, value in record.items() if key != "kind"}
    return config.from_table(_KINDS[record["kind"]], values, where="variant")


FULL = "full"
"""Row of the one model that has every part."""
_ORDERS = {
    "teacher": "the final stage itself",
    "incumbent": "the early stage that wrote the log",
    "chance": "a random order",
}
_TASKS_IN_WORDS = ("clicks alone", "clicks and conversions", "clicks, conversions and quality")
_DISTILLATION_IN_WORDS = {
    "separate": "labels, and the final stage's predictions by heads of their own",
    "mixed": "labels and the final stage's predictions by the same heads",
    "none": "labels alone",
}
_POOLS_IN_WORDS = {
    "impressed": "rows that were shown (pool I)",
    "scored": "rows that were shown or scored (I, II)",
    "rejected": "rows that were shown, scored or turned away before (I to III)",
}
_BOOSTED_IN_WORDS = {
    "value": "total value by least squares",
    "rank": "the order of total value by lambdarank",
    "parts": "a model for each of the final stage's predictions",
}


def words_of(variant: Variant) -> str:
    """What a row is, for the reader of its page."""
    match variant:
        case Given():
            return _ORDERS[variant.order]
        case Boosted():
            return f"LightGBM, distilled: {_BOOSTED_IN_WORDS[variant.objective]}"
        case OneModelEach():
            size = "together at its cost" if variant.equal_cost else "each as large"
            return f"as {FULL}, but a model for each task, {size}"
        case OneModel():
            full = _parts(OneModel(tasks=3))
            changed = [part for part in _parts(variant) if part not in full]
            if variant.distil_weight is not None:
                changed.append(f"weight {variant.distil_weight:g} of each distillation loss")
            changed += [f"`{setting}`" for setting in variant.settings]
            return f"as {FULL}, but: {'; '.join(changed)}" if changed else "; ".join(full)


def _parts(variant: OneModel) -> list[str]:
    return [
        _TASKS_IN_WORDS[variant.tasks - 1],
        _DISTILLATION_IN_WORDS[variant.distillation],
        _POOLS_IN_WORDS[variant.pools],
    ]


def recipes_of(variant: Variant) -> tuple[str, ...]:
    """Names of the recipes that decide a variant; the first is what it is trained by."""
    match variant:
        case OneModel(distillation="none"):
            return ("labels_alone",)
        case OneModel():
            return ("early_stage",)
        case OneModelEach(equal_cost=True):
            # What all of them together may cost is what the one model does.
            return ("one_model_each", "early_stage")
        case OneModelEach():
            return ("one_model_each",)
        case Boosted(objective="parts"):
            return ("lightgbm_parts",)
        case Boosted():
            return ("lightgbm",)
        case Given():
            return ()


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyClaim:
    """A claim that one ranker beats another, over seeds."""

    better: str
    """Row that is claimed to be better."""
    worse: str
    """Row that it is compared with."""
    at_least: float = 0.0
    """By so much of the metric."""
    metric: Literal["soft_recall", "hard_recall", "golden_rejected"] = "soft_recall"
    """What is compared; more is better."""

    @property
    def models(self) -> tuple[str, ...]:
        """Rows that it is about."""
        return self.better, self.worse


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationClaim:
    """A claim that what a ranker predicts adds up to its targets, for each task and seed."""

    model: str
    """Row that it is about."""
    head: Head
    """Head of the ranker."""
    by: Parts
    """Parts of the judged rows, each of which adds up."""

    @property
    def models(self) -> tuple[str, ...]:
        """Rows that it is about."""
        return (self.model,)


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyTable:
    """Rankers for one cascade, over seeds."""

    name: str
    """Name of the table and of its files in ``results/``."""
    cascade: MarketCascade | PublicCascade
    """What they are trained and judged on."""
    variants: Mapping[str, Variant]
    """By row name."""
    claims: tuple[EarlyClaim | CalibrationClaim, ...]
    """What is claimed of them."""
    seeds: int = 5
    """Seeds 0 to seeds - 1 of the trainings; the cascade is one and the same."""

    def __post_init__(self) -> None:
        assert self.seeds > 1, "a standard deviation needs two seeds"
        named = {name for claim in self.claims for name in claim.models}
        assert named <= set(self.variants), f"{self.name}: unknown {named - set(self.variants)}"

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the rows."""
        return tuple(self.variants)


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundsTable:
    """Early stages that are retrained on what they let through, by the rows that they learn from.

    Its rows are the sets of pools; the first round is served by one incumbent for all.
    """

    name: str
    """Name of the table and of its files in ``results/``."""
    cascade: MarketCascade
    """The market; of its days the first train both stages, and the others are the rounds'."""
    rounds: int
    """Rounds, the incumbent's included."""
    days: int
    """Days of a round."""
    seeds: int = 3
    """Seeds 0 to seeds - 1 of the trainings; the market is one and the same."""
    models: tuple[Pools, ...] = ("impressed", "scored", "rejected")
    """Furthest pool that each policy learns from."""

    def __post_init__(self) -> None:
        assert self.seeds > 1, "a standard deviation needs two seeds"
        assert self.rounds > 1, "the first round is the incumbent's"
        later = sum(self.cascade.days[1:])
        assert self.rounds * self.days <= later, f"{self.name}: rounds need days, got {later}"


VARIANTS: dict[str, Variant] = {
    "teacher": Given(order="teacher"),
    "incumbent": Given(order="incumbent"),
    "chance": Given(order="chance"),
    # The task set, by labels alone and with the final stage's predictions.
    "click": OneModel(tasks=1, pools="impressed", distillation="none"),
    "click+conversion": OneModel(tasks=2, pools="impressed", distillation="none"),
    "click+conversion+quality": OneModel(tasks=3, pools="impressed", distillation="none"),
    "click, distilled": OneModel(tasks=1),
    "click+conversion, distilled": OneModel(tasks=2),
    FULL: OneModel(tasks=3),
    # Where the predictions are learned; the rows; their weight.
    "mixed": OneModel(tasks=3, distillation="mixed"),
    "pool I": OneModel(tasks=3, pools="impressed"),
    "pools I+II": OneModel(tasks=3, pools="scored"),
    "pool I, mixed": OneModel(tasks=3, pools="impressed", distillation="mixed"),
    **{f"k={k:g}": OneModel(tasks=3, distil_weight=k) for k in (0.3, 1.0, 3.0, 10.0)},
    # What heads stand on.
    "mmoe": OneModel(tasks=3, settings=("model.bottom='mmoe'",)),
    # Narrower experts, or it would be more than half as large as the final stage.
    "ple": OneModel(tasks=3, settings=("model.bottom='ple'", "model.expert_units=[[96, 48]]")),
    "dot": OneModel(tasks=3, settings=("model.bottom='dot'",)),
    "no chain": OneModel(tasks=3, settings=("model.chain=false",)),
    # Rivals.
    "one model each, equal cost": OneModelEach(equal_cost=True),
    "one model each, equal size": OneModelEach(equal_cost=False),
    "lightgbm, value": Boosted(objective="value"),
    "lightgbm, rank": Boosted(objective="rank"),
    "lightgbm, parts": Boosted(objective="parts"),
}
"""The rows of every table; quality is hides, or carts where there are no hides."""

CLAIMS: tuple[EarlyClaim | CalibrationClaim, ...] = (
    EarlyClaim(better=FULL, worse="click", at_least=0.03),
    EarlyClaim(better="click+conversion", worse="click"),
    EarlyClaim(better="click+conversion+quality", worse="click+conversion"),
    EarlyClaim(better="click+conversion, distilled", worse="click, distilled"),
    EarlyClaim(better=FULL, worse="click+conversion, distilled"),
    EarlyClaim(better=FULL, worse="mixed"),
    EarlyClaim(better=FULL, worse="click+conversion+quality"),
    EarlyClaim(better="pools I+II", worse="pool I"),
    EarlyClaim(better=FULL, worse="pools I+II"),
    EarlyClaim(better=FULL, worse="pool I", metric="golden_rejected"),
    EarlyClaim(better=FULL, worse="one model each, equal cost"),
    EarlyClaim(better=FULL, worse="lightgbm, value"),
    EarlyClaim(better=FULL, worse="lightgbm, parts"),
    EarlyClaim(better=FULL, worse="incumbent"),
    *(
        CalibrationClaim(model=FULL, head=head, by=by)
        for head in get_args(Head)
        for by in get_args(Parts)
    ),
)
"""What the specification asks of every cascade, and what its tables claim."""


def early_tables() -> tuple[EarlyTable | RoundsTable, ...]:
    """The tables of the group ``early-stage``, in order."""
    market = MarketCascade(
        sizes=CascadeSizes(
            keep=30,
            slots=4,
            train_requests=40_000,
            test_requests=1000,
            scored_per_request=6,
            rejected_per_request=6,
        ),
        rows=1_200_000,
        rows_per_ad=1000,
        conversion_rate=0.15,
        days=(9, 3, 1),
    )
    films = PublicCascade(
        sizes=CascadeSizes(keep=50, slots=10, train_requests=10_000, test_requests=1000),
        dataset="movielens_1m",
        candidates=500,
        teacher_events=150_000,
        negatives=4,
        quality_task="hide",
    )
    shop = PublicCascade(
        sizes=CascadeSizes(keep=50, slots=10, train_requests=10_000, test_requests=1000),
        dataset="retailrocket_multibehavior",
        candidates=500,
        teacher_events=150_000,
        negatives=4,
        quality_task="cart",
    )
    rounds = RoundsTable(
        name="early-stage-rounds",
        cascade=MarketCascade(
            sizes=CascadeSizes(keep=30, slots=4, train_requests=8000, test_requests=500),
            rows=800_000,
            rows_per_ad=800,
            conversion_rate=market.conversion_rate,
            days=(9, 8, 0),
        ),
        rounds=4,
        days=2,
    )
    return (
        *(
            EarlyTable(
                name=f"early-stage-{name}", cascade=cascade, variants=VARIANTS, claims=CLAIMS
            )
            for name, cascade in (
                ("market", market),
                ("movielens1m", films),
                ("retailrocket", shop),
            )
        ),
        rounds,
    )
