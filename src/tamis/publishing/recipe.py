"""What a person writes to publish a funnel: runs, budgets, where bids are, weights of the value."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from tamis import config
from tamis.errors import ConfigError
from tamis.evaluation.calibrators import CalibrationMethod
from tamis.funnel.blueprint import Budget
from tamis.funnel.cache import UserCache
from tamis.funnel.online import OnlineFeatures
from tamis.funnel.plans import Precision
from tamis.funnel.value import ValueWeights
from tamis.models.early_serving import ServedHead

_KEPT_BY_USER, _KEPT_BY_AD = {"max_users", "time_to_live_ms"}, {"max_ads"}
_SETTINGS_OF_KIND = {
    "popularity": set[str](),
    "index": {"run", "beams", "task_weights", *_KEPT_BY_USER},
    "two_tower": {"run", "task_weights", "by_bid", *_KEPT_BY_USER},
    "early": {"run", "calibration", "precision", "head", *_KEPT_BY_USER},
    "ranker": {"run", "calibration", "precision", *_KEPT_BY_AD},
}
_COMPUTES_NOTHING = "it only reads how often an ad was clicked"
_SCORES_FOR_USERS = "its scores of an ad are of one user, and the ads' own part is kept anyway"
_WHY_NOT_KEPT: dict[str, dict[str, str]] = {
    "popularity": dict.fromkeys(_KEPT_BY_USER | _KEPT_BY_AD, _COMPUTES_NOTHING),
    "index": dict.fromkeys(_KEPT_BY_AD, _SCORES_FOR_USERS),
    "two_tower": dict.fromkeys(_KEPT_BY_AD, _SCORES_FOR_USERS),
    "early": dict.fromkeys(_KEPT_BY_AD, _SCORES_FOR_USERS),
    "ranker": dict.fromkeys(
        _KEPT_BY_USER, "its predictions price the ads of one request, in whose context they hold"
    ),
}
"""Why a stage of a kind has no such cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRecipe:
    """One stage."""

    name: str
    """Name in traces, reports and folders: small letters, digits, ``_`` and ``-``; not ``known`` or
    ``auction``."""
    kind: Literal["popularity", "index", "two_tower", "early", "ranker"]
    """Ads by how often they were clicked; beam search through the index that an ``hsnn`` learnt;
    exact search by the dot products of a ``two_tower``; an early-stage ranker, whose towers are
    cached; or any model of the catalog, run on every candidate."""
    keep: int
    """Candidates that go on. At least 1."""
    budget_ms: float | None = None
    """Milliseconds after which the stage falls back; absent: as long as it likes."""
    run: str = ""
    """Folder of the finished run whose model serves; not for ``popularity``."""
    calibration: CalibrationMethod | None = None
    """How predictions are calibrated, for each way of billing, on the run's validation split, of a
    cascade's rows on those that came to the final stage; absent: they are left as they are.
    Isotonic maps tie candidates."""
    head: ServedHead | None = None
    """Which head gives a task's prediction; absent: ``distilled``. For ``early`` only."""
    max_users: int | None = None
    """Most users whose vectors, or answers, are kept; absent: 100,000. For ``early``, and with
    ``time_to_live_ms`` for ``index`` and ``two_tower``."""
    time_to_live_ms: float | None = None
    """How long a user's vector serves an ``early`` stage; absent: a minute. How long the answer to
    a user of an ``index`` or ``two_tower`` serves his next requests for the same candidates,
    whatever he did meanwhile and whatever their context; absent: it serves none."""
    max_ads: int | None = None
    """Most ads whose scores are kept; absent: none are. For a ``ranker`` whose model reads the ad's
    fields alone."""
    precision: Precision | None = None
    """Type of matrix products; absent: float32. For ``early`` and ``ranker``."""
    beams: tuple[int, ...] | None = None
    """Nodes to keep at each index level, the coarsest first. For ``index``, which needs them."""
    task_weights: tuple[float, ...] | None = None
    """Weight of each task in the score; absent: an ``index`` searches by total value, and of a
    ``two_tower`` the first task counts. For these two only."""
    by_bid: bool | None = None
    """Whether the logarithm of an ad's bid is added to its score; absent: it is. For ``two_tower``
    only."""

    def __post_init__(self) -> None:
        allowed = _SETTINGS_OF_KIND[self.kind] | {"name", "kind", "keep", "budget_ms"}
        for item in fields(self):
            if item.name not in allowed and getattr(self, item.name) not in (None, ""):
                why = _WHY_NOT_KEPT[self.kind].get(item.name)
                because = f", as {why}" if why else ""
                raise ConfigError(
                    f"stage {self.name!r}: {item.name} must be left out for kind {self.kind!r}"
                    f"{because}, got {getattr(self, item.name)!r}. Remove it, or take another kind."
                )
        if self.kind != "popularity" and not self.run:
            raise ConfigError(
                f"stage {self.name!r}: run must name a finished run for kind {self.kind!r}, got "
                f"none. Train a model and give its folder."
            )
        if self.kind == "index" and self.beams is None:
            raise ConfigError(
                f"stage {self.name!r}: beams must say how many nodes are kept at each index level, "
                f"got none. Give one number for each of the model's codebooks."
            )
        Budget(name=self.name, keep=self.keep, budget_ms=self.budget_ms)
        if self.max_ads is not None and self.max_ads < 1:
            raise ConfigError(
                f"stage {self.name!r}: max_ads must be at least 1, got {self.max_ads}. Leave it "
                f"out to keep no scores."
            )
        if self.kind == "early":
            users, serves = self.max_users, self.time_to_live_ms
            if (users is not None and users < 1) or (serves is not None and not serves >= 0):
                raise ConfigError(
                    f"stage {self.name!r}: max_users must be at least 1 and time_to_live_ms at "
                    f"least 0, got max_users={users!r}, time_to_live_ms={serves!r}."
                )
        try:
            self.user_cache()
        except ConfigError as error:
            raise ConfigError(f"stage {self.name!r}: {error}") from error

    def user_cache(self) -> UserCache | None:
        """How a stage that searches keeps its answers; None: it keeps none, or does not search.

        Raises:
            ConfigError: A number is out of range, or nothing says how long an answer serves.
        """
        if self.kind not in ("index", "two_tower"):
            return None
        if self.time_to_live_ms is None:
            if self.max_users is not None:
                raise ConfigError(
                    f"time_to_live_ms must say how long an answer serves where max_users is given, "
                    f"got max_users={self.max_users!r} alone. Give both, or neither."
                )
            return None
        if self.max_users is None:
            return UserCache(time_to_live_ms=self.time_to_live_ms)
        return UserCache(time_to_live_ms=self.time_to_live_ms, max_users=self.max_users)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdsRecipe:
    """Where the ads are, and what they bid. Columns are those of ``table``."""

    table: str = ""
    """Parquet, CSV or JSON file with a row for each ad. Empty: every ad bids 1 and is alone with
    its advertiser, as where a log has no auction."""
    item: str = ""
    """Column of the ad's id. Empty: as in the log."""
    bid: str = "bid"
    """Column of the bid for one billed event."""
    bid_unit: float = 1.0
    """Money of one unit of the bid, such as 1e-6 for micros. Positive."""
    advertiser: str = ""
    """Column of the advertiser. Empty: each ad is alone with its own, as is one without a value."""
    billing: str = ""
    """Column that says ``click`` or ``conversion``. Empty: ``pays_for``."""
    pays_for: Literal["click", "conversion"] = "click"
    """What an ad pays for where no column, or no value in it, says it."""
    quality: str = ""
    """Column of the money that an impression is worth whatever is bid. Empty: 0."""
    without_bid: Literal["refuse", "leave_out"] = "refuse"
    """What becomes of ads that the log shows and the table lacks, or gives no bid: ``leave_out``
    where they are shown no more."""
    splits: tuple[str, ...] = ("train", "valid")
    """Splits of the dataset, in the order of time, whose ads are taken, with features as their
    last rows there have them. Leave out those that the funnel is measured on."""
    log: str = ""
    """The log that the dataset was made of, a file or a folder: ids and columns of the ads are read
    from it, which a server needs. Empty: the bundle can be replayed, not served."""

    def __post_init__(self) -> None:
        if not self.bid_unit > 0 or not self.splits:
            raise ConfigError(
                f"ads: bid_unit must be positive and splits name at least one, got bid_unit="
                f"{self.bid_unit!r}, splits={self.splits!r}."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class FunnelRecipe:
    """A whole funnel."""

    stages: tuple[StageRecipe, ...]
    """First to last, each keeping no more than the one before."""
    dataset: str = ""
    """Dataset whose encoders and ads serve; every stage's fields are among its. Empty: that of the
    last stage's run."""
    ads: AdsRecipe = AdsRecipe()
    """Where the ads are."""
    value: ValueWeights = field(default_factory=ValueWeights)
    """Weights of the total value."""
    reserve: float = 0.0
    """Least price of a billed event, money. At least 0."""
    online: OnlineFeatures = field(default_factory=OnlineFeatures)
    """Fields that a server makes from events."""

    def __post_init__(self) -> None:
        if not self.dataset and not any(stage.run for stage in self.stages):
            raise ConfigError(
                "dataset: must be named where no stage has a run, got none. Name the dataset, or "
                "add a stage with a run."
            )


def read_recipe(path: Path) -> FunnelRecipe:
    """Read a funnel's recipe.

    Raises:
        ConfigError: The file is no TOML, or a key is unknown, missing, mistyped or out of range;
            the file is named.
    """
    table = config.read_toml(path)
    try:
        return config.from_table(FunnelRecipe, table)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
