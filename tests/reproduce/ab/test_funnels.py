"""What the recipes of the funnels make: early stages that are less than their final ones."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from tamis import api
from tamis.data.market.schema import market_schema
from tamis.data.schema import InputSpec
from tamis.models import catalog
from tamis.reproduce.ab.funnels import EARLY_WITHOUT
from tamis.training.asymmetry import check_asymmetry
from tamis.training.config import read_run_config

_RECIPES = Path(__file__).parents[3] / "recipes" / "ab-market"


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> tuple[InputSpec, InputSpec]:
    """Inputs of early and of final stages."""
    folder, schema = tmp_path_factory.mktemp("market"), market_schema()
    api.simulate(1000, folder / "market", seed=0)
    fields = tuple(field for field in schema.fields if field.name not in EARLY_WITHOUT)
    narrow = replace(schema, fields=fields)
    early = api.ingest(folder / "market", folder / "narrow", schema=narrow).spec
    return early, api.ingest(folder / "market", folder / "whole").spec


def _model(recipe: str, spec: InputSpec) -> nn.Module:
    config = read_run_config(_RECIPES / f"{recipe}.toml")
    return catalog.entry(config.model_name).model(config.model, spec)


@pytest.mark.parametrize(
    ("early", "final"), [("early", "final"), ("click_early", "baseline_final")]
)
def test_early_stages_are_less_than_their_final_ones(
    specs: tuple[InputSpec, InputSpec], early: str, final: str
) -> None:
    few, all_inputs = specs

    check_asymmetry(_model(early, few), few, _model(final, all_inputs), all_inputs)
