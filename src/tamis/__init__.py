"""tamis: from raw interaction logs to a measured ads-ranking funnel.

The names below are loaded on first use, so that ``import tamis`` is fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tamis.api import (
        Run,
        ab_test,
        compare,
        evaluate,
        ingest,
        open_dataset,
        predict,
        publish,
        replay,
        simulate,
        train,
        write_report,
    )

__all__ = [
    "Run",
    "ab_test",
    "compare",
    "evaluate",
    "ingest",
    "open_dataset",
    "predict",
    "publish",
    "replay",
    "simulate",
    "train",
    "write_report",
]


_MODULES = ("api", "errors")


def __getattr__(name: str) -> Any:  # noqa: ANN401  (whatever the name stands for)
    if name in _MODULES:
        return importlib.import_module(f"tamis.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'tamis' has no attribute {name!r}")
    from tamis import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted((*__all__, *_MODULES, "__doc__", "__name__", "__path__"))
