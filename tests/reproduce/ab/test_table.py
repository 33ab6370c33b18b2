"""Claims, lines and the page of A/B tests, on rows that are made up here."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tamis.errors import ConfigError
from tamis.reproduce.ab import table
from tamis.reproduce.ab.funnels import RECIPES
from tamis.reproduce.ab.table import AbRows
from tamis.reproduce.make import kind_of
from tamis.reproduce.tables import TABLES

TABLE = replace(TABLES["ab-market"], seeds=3)
ROWS = AbRows(TABLE)
RECIPE_FOLDER = Path(__file__).parents[3] / "recipes" / "ab-market"


def _losses(lost: dict[str, float]) -> dict[str, Any]:
    return {
        "requests": 10,
        "regret": {"value": sum(lost.values())},
        "stages": [{"stage": name, "lost": {"value": value}} for name, value in lost.items()],
    }


def _difference(control: float, treatment: float, error: float = 0.01) -> dict[str, Any]:
    return {
        "control": {"value": control},
        "treatment": {"value": treatment},
        "difference": treatment - control,
        "standard_error": error,
        "lower": treatment - control - 1.96 * error,
        "upper": treatment - control + 1.96 * error,
        "lift": treatment / control - 1,
    }


def _test(
    gain: float, *, stopped_on: int | None, lower: float, control: dict[str, float]
) -> dict[str, Any]:
    rates = {name: _difference(0.1, 0.11) for name in ("click_rate", "conversion_rate")}
    return {
        "differences": {
            "value_per_request": _difference(0.2, 0.2 + gain),
            "hide_rate": _difference(0.02, 0.01),
            **rates,
        },
        "guarded": {
            "value_per_user": {
                "days": [1, 2],
                "lower": [-1.0, lower],
                "upper": [1.0, lower + 0.1],
                "stopped_on": stopped_on,
            }
        },
        "losses": {
            "control": _losses(control),
            "treatment": _losses(
                {"known": 0.0, "retrieval": 0.01, "early": 0.02, "final": 0.03, "auction": 0.04}
            ),
        },
    }


def _row(seed: int, gain: float) -> dict[str, Any]:
    baseline = {"known": 0.0, "retrieval": 0.05, "early": 0.04, "final": 0.03, "auction": 0.02}
    return {
        "model": "full",
        "seed": seed,
        "commit": "c0ffee",
        "tests": {
            "baseline": _test(gain, stopped_on=None, lower=-0.5, control=baseline),
            "popularity": _test(
                gain + 0.1,
                stopped_on=2,
                lower=0.02,
                control={"known": 0.0, "popularity": 0.3, "auction": 0.1},
            ),
        },
    }


@pytest.mark.parametrize(
    ("gains", "over_markets", "over_users"),
    [
        ([0.030, 0.031, 0.032], True, True),
        # Larger on average, but not the same in every market.
        ([0.005, 0.050, 0.095], False, True),
        # The same in every market, but within the noise of users.
        ([0.010, 0.0101, 0.0102], True, False),
        ([-0.030, -0.031, -0.032], False, False),
    ],
)
def test_claims_hold_where_their_intervals_lie_above_0(
    gains: list[float], over_markets: bool, over_users: bool
) -> None:
    claims = ROWS.claims([_row(seed, gain) for seed, gain in enumerate(gains)])

    assert [claim["claim"] for claim in claims] == [
        f"full has a higher value per request than {rival}, over {what}"
        for rival in ("baseline", "popularity")
        for what in ("markets", "users")
    ]
    assert [claim["holds"] for claim in claims[:2]] == [over_markets, over_users]
    markets, users = claims[:2]
    mean, spread = np.mean(gains), np.std(gains, ddof=1)
    assert markets["estimate"] == pytest.approx(mean)
    # Student's t of two degrees of freedom at 97.5 %.
    assert markets["interval"][0] == pytest.approx(mean - 4.30265 * spread / np.sqrt(3), rel=1e-4)
    assert users["estimate"] == pytest.approx(mean)
    # Three errors of 0.01: their mean has 0.01 / sqrt(3).
    half = 1.959964 * 0.01 / np.sqrt(3)
    assert users["interval"] == pytest.approx([mean - half, mean + half])


def test_page_tells_where_the_gain_comes_from() -> None:
    rows = [_row(seed, gain) for seed, gain in enumerate((0.030, 0.031, 0.032))]
    columns, display = ROWS.display(rows)
    payload = {
        "table": TABLE.name,
        "command": "tamis reproduce ab-market",
        "rows": rows,
        "settings": {},
        "claims": ROWS.claims(rows),
    }

    page = ROWS.markdown(payload, columns, display)

    assert f"]({TABLE.name}.svg)" in page
    assert [cells[:2] for cells in display] == [
        ["against baseline", "full"],
        ["against baseline", "baseline"],
        ["against popularity", "full"],
        ["against popularity", "popularity"],
    ]
    assert all(len(cells) == len(columns) for cells in display)
    assert display[0][2] == "0.2310 ± 0.0010"
    assert display[3][-1] == "0.4000 ± 0.0000"
    sure = " ± 0.0000"
    gains = [0.0, 0.04, 0.02, 0.0, -0.02, 0.04]
    # Alike in all markets, so that the interval is the gain itself.
    shown = " | ".join(f"{gain:+.4f} [{gain:+.4f}, {gain:+.4f}]" for gain in gains)
    assert f"| baseline | gain | {shown} |" in page
    # Popularity is one stage, which retrieves; what it lacks loses nothing.
    lost = " | ".join(f"{value:.4f}{sure}" for value in (0.0, 0.3, 0.0, 0.0, 0.1, 0.4))
    assert f"| popularity | popularity | {lost} |" in page
    assert "| baseline | 0 | +0.0300 [+0.0104, +0.0496] | +15.0% | no difference yet |" in page
    assert "| +65.0% | full wins after day 2 |" in page


def test_figure_has_every_test_and_what_is_claimed_over_markets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [_row(seed, gain) for seed, gain in enumerate((0.030, 0.040))]
    silent = rows[1]["tests"]["popularity"]["differences"]["value_per_request"]
    silent |= {"standard_error": None, "lower": None, "upper": None}
    drawn: list[Any] = []
    monkeypatch.setattr(table, "differences", lambda found, **_: drawn.extend(found))

    ROWS.figure(rows)

    claims = [claim for claim in ROWS.claims(rows) if "over markets" in claim["claim"]]
    assert [(one.name, pytest.approx(one.estimate)) for one in drawn] == [
        ("against baseline, market 0", 0.030),
        ("against baseline, market 1", 0.040),
        ("against baseline, over markets", 0.035),
        ("against popularity, market 0", 0.130),
        ("against popularity, market 1", 0.140),
        ("against popularity, over markets", 0.135),
    ]
    assert [drawn[0].lower, drawn[0].upper] == pytest.approx([0.0104, 0.0496])
    assert [[one.lower, one.upper] for one in (drawn[2], drawn[5])] == [
        claim["interval"] for claim in claims
    ]
    assert math.isnan(drawn[4].lower)
    assert math.isnan(drawn[4].upper)


def test_test_without_an_error_has_no_interval_and_no_claim_over_users() -> None:
    rows = [_row(seed, 0.03) for seed in range(3)]
    unknown = dict.fromkeys(("standard_error", "lower", "upper", "lift"))
    rows[1]["tests"]["baseline"]["differences"]["value_per_request"] |= unknown
    columns, display = ROWS.display(rows)
    claims = ROWS.claims(rows)
    payload = {"table": "t", "command": "c", "rows": rows, "settings": {}, "claims": claims}

    assert [claim["claim"].split()[-3] for claim in claims] == [
        "baseline,", "popularity,", "popularity,"
    ]  # fmt: skip
    page = ROWS.markdown(payload, columns, display)
    assert "| baseline | 1 | +0.0300 |  | no difference yet |" in page
    assert "\nNo claim over users against baseline: in markets 1 all users of an arm have" in page
    assert "against popularity: in markets" not in page


def test_test_of_too_few_events_for_its_guard_says_so() -> None:
    rows = [_row(seed, 0.03) for seed in range(3)]
    rows[0]["tests"]["baseline"]["guarded"]["value_per_user"] = None
    columns, display = ROWS.display(rows)
    payload = {"table": "t", "command": "c", "rows": rows, "settings": {}, "claims": []}

    page = ROWS.markdown(payload, columns, display)

    assert "| baseline | 0 | +0.0300 [+0.0104, +0.0496] | +15.0% | too few events |" in page
    assert "No claim over users" not in page


def test_a_rival_can_win() -> None:
    rows = [_row(seed, -0.15) for seed in range(3)]
    for row in rows:
        row["tests"]["popularity"]["guarded"]["value_per_user"]["lower"][1] = -0.2
    columns, display = ROWS.display(rows)
    payload = {"table": "t", "command": "c", "rows": rows, "settings": {}, "claims": []}

    assert "| rival wins after day 2 |" in ROWS.markdown(payload, columns, display)


def test_another_recipe_size_or_market_is_another_row(tmp_path: Path) -> None:
    for name in RECIPES:
        (tmp_path / f"{name}.toml").write_text('[model]\nname = "lr"\n')
    prints = {ROWS.recipes(tmp_path)["full"]}
    sizes = replace(TABLE.sizes, early=31)
    prints.add(AbRows(replace(TABLE, sizes=sizes)).recipes(tmp_path)["full"])
    (tmp_path / "final.toml").write_text('[model]\nname = "fm"\n')
    prints.add(ROWS.recipes(tmp_path)["full"])
    assert len(prints) == 3

    markets = [
        TABLE,
        replace(TABLE, market=replace(TABLE.market, test_days=3)),
        replace(TABLE, judge_every=26),
        replace(TABLE, smallest=0.04),
    ]
    assert len({AbRows(table).prepare(None, tmp_path, tmp_path)[1] for table in markets}) == 4
    # More seeds leave the rows that there are.
    more = AbRows(replace(TABLE, seeds=4)).prepare(None, tmp_path, tmp_path)
    assert more == ROWS.prepare(None, tmp_path, tmp_path)

    (tmp_path / "two_tower.toml").unlink()
    with pytest.raises(ConfigError, match=r"two_tower\.toml: must exist"):
        ROWS.recipes(tmp_path)


def test_table_is_known_and_its_recipes_are_there() -> None:
    kind = kind_of(TABLES["ab-market"])

    assert isinstance(kind, AbRows)
    assert kind.models == ("full",)
    assert kind.seeds == 5
    assert set(kind.recipes(RECIPE_FOLDER)) == {"full"}
