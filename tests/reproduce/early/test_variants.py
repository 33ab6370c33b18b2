"""What stands in the tables of the early stage."""

import pytest

from tamis.reproduce.early.variants import (
    CLAIMS,
    FULL,
    VARIANTS,
    CalibrationClaim,
    CascadeSizes,
    EarlyClaim,
    EarlyTable,
    Head,
    OneModel,
    Parts,
    early_tables,
    recipes_of,
    variant_from_json,
    variant_to_json,
)
from tamis.reproduce.tables import GROUPS, TABLES


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_come_back_from_json(name: str) -> None:
    assert variant_from_json(variant_to_json(VARIANTS[name])) == VARIANTS[name]


def test_no_two_rows_are_the_same() -> None:
    assert len({str(variant_to_json(variant)) for variant in VARIANTS.values()}) == len(VARIANTS)


def test_the_bar_of_the_specification_is_claimed() -> None:
    assert EarlyClaim(better=FULL, worse="click", at_least=0.03) in CLAIMS
    assert VARIANTS[FULL] == OneModel(tasks=3, pools="rejected", distillation="separate")
    assert VARIANTS["click"] == OneModel(tasks=1, pools="impressed", distillation="none")


@pytest.mark.parametrize("rival", ["lightgbm, value", "lightgbm, parts"])
def test_trees_are_what_is_to_be_beaten(rival: str) -> None:
    assert EarlyClaim(better=FULL, worse=rival) in CLAIMS


@pytest.mark.parametrize("head", ["served", "label"])
@pytest.mark.parametrize("by", ["all", "billing", "bid decile"])
def test_every_head_is_claimed_to_be_calibrated(head: Head, by: Parts) -> None:
    assert CalibrationClaim(model=FULL, head=head, by=by) in CLAIMS


def test_each_kind_of_ranker_has_the_recipe_that_was_chosen_for_it() -> None:
    first = {name: recipes_of(variant)[:1] for name, variant in VARIANTS.items()}
    assert first[FULL] == first["mixed"] == first["pool I"] == ("early_stage",)
    assert first["click"] == first["click+conversion+quality"] == ("labels_alone",)
    assert first["lightgbm, value"] == first["lightgbm, rank"] == ("lightgbm",)
    assert first["lightgbm, parts"] == ("lightgbm_parts",)
    assert first["teacher"] == ()
    # What models apart may cost is what the one model does.
    assert recipes_of(VARIANTS["one model each, equal cost"]) == ("one_model_each", "early_stage")


def test_one_name_makes_all_tables() -> None:
    names = tuple(table.name for table in early_tables())
    assert GROUPS["early-stage"] == names
    assert set(names) <= set(TABLES)
    assert names[0] == "early-stage-market"


def test_a_claim_about_an_unknown_row_is_refused() -> None:
    table = early_tables()[0]
    assert isinstance(table, EarlyTable)
    with pytest.raises(AssertionError, match="unknown"):
        EarlyTable(
            name="t",
            cascade=table.cascade,
            variants={"a": OneModel(tasks=1)},
            claims=(EarlyClaim(better="a", worse="b"),),
        )


@pytest.mark.parametrize(("keep", "slots", "exploration"), [(3, 4, 0.0), (9, 4, 0.3)])
def test_sizes_that_make_no_cascade_are_refused(keep: int, slots: int, exploration: float) -> None:
    with pytest.raises(AssertionError):
        CascadeSizes(
            keep=keep, slots=slots, train_requests=1, test_requests=1, exploration=exploration
        )
