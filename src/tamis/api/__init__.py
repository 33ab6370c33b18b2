"""The library in a few calls: simulate, ingest, train, evaluate, predict, compare, publish, replay.

Everything here wires the layers below; the command line calls the same functions.
"""

from tamis.api.datasets import (
    dataset_folder_for,
    import_deepctr,
    import_fuxictr,
    import_recbole,
    infer_schema,
    ingest,
    is_dataset,
    open_dataset,
    schema_of,
    simulate,
    split_config,
    write_schema,
)
from tamis.api.funnels import ab_test, is_bundle, publish, replay, simulate_by_funnel, write_cascade
from tamis.api.runs import (
    Run,
    check_recipe,
    check_run_folder,
    check_settings,
    compare,
    dataset_of,
    dataset_to_go_on,
    default_batch_size,
    evaluate,
    predict,
    predict_counted,
    train,
    write_recipe,
    write_report,
)
from tamis.api.settings import Setting, models, settings_of
from tamis.process import prepare_process

__all__ = [
    "Run",
    "Setting",
    "ab_test",
    "check_recipe",
    "check_run_folder",
    "check_settings",
    "compare",
    "dataset_folder_for",
    "dataset_of",
    "dataset_to_go_on",
    "default_batch_size",
    "evaluate",
    "import_deepctr",
    "import_fuxictr",
    "import_recbole",
    "infer_schema",
    "ingest",
    "is_bundle",
    "is_dataset",
    "models",
    "open_dataset",
    "predict",
    "predict_counted",
    "prepare_process",
    "publish",
    "replay",
    "schema_of",
    "settings_of",
    "simulate",
    "simulate_by_funnel",
    "split_config",
    "train",
    "write_cascade",
    "write_recipe",
    "write_report",
    "write_schema",
]
