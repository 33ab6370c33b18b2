"""Settings of models that are not part of tamis."""

from dataclasses import dataclass

import pytest

from tamis import api
from tamis.models import catalog
from tamis.models.lr import LR
from tamis.models.standalone import Entry


@dataclass(frozen=True, kw_only=True, slots=True)
class _Config:
    width: int = 16


class _Model(LR):
    pass


def test_model_without_a_word_about_it_has_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, type] = {}
    exec("class Made:\n    pass", {"__name__": "nowhere"}, made)  # noqa: S102  (as a notebook does)
    plain, unheard = Entry(config=_Config, model=_Model), Entry(config=_Config, model=made["Made"])
    monkeypatch.setattr(catalog, "CATALOG", {"plain": plain, "unheard": unheard})

    assert api.models() == {
        "plain": "Settings of models that are not part of tamis.", "unheard": "",
    }  # fmt: skip
    (setting,) = api.settings_of("plain")["model"]
    assert (setting.name, setting.default, setting.meaning) == ("width", "16", "")


def test_config_of_a_notebook_has_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, type] = {"dataclass": dataclass}
    exec("@dataclass(frozen=True)\nclass Made:\n    width: int = 4", made)  # noqa: S102  (the same)
    entry = Entry(config=made["Made"], model=_Model)
    monkeypatch.setattr(catalog, "CATALOG", {"made": entry})

    (setting,) = api.settings_of("made")["model"]
    assert (setting.name, setting.default, setting.meaning) == ("width", "4", "")
