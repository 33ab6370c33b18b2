"""The one table of model names."""

from tamis.models.cetnet import CETNet, CETNetConfig
from tamis.models.standalone import STANDALONE, Entry, find

CATALOG: dict[str, Entry] = dict(
    sorted({**STANDALONE, "cetnet": Entry(config=CETNetConfig, model=CETNet)}.items())
)
"""Every model by name."""


def entry(name: object) -> Entry:
    """Look a model up.

    Raises:
        ConfigError: There is no model of that name; the message has the nearest one.
    """
    return find(CATALOG, name, where="model.name")
