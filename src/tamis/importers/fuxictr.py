"""FuxiCTR: ``dataset_config.yaml`` and ``model_config.yaml`` to a schema and a recipe.

Meanings are those of FuxiCTR 2.3. Whatever has no counterpart here becomes a note, and so does a
setting that the file leaves to FuxiCTR's default where tamis has another.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tamis.data.schema import free_names
from tamis.errors import ConfigError
from tamis.importers.fuxictr_config import as_table, blamed_on, holder, read_configs
from tamis.importers.fuxictr_recipe import read_recipe
from tamis.importers.fuxictr_schema import read_data_set
from tamis.importers.imported import Imported

# Keys of a data set that are no settings of a model.
_OF_DATA = {
    *("data_root", "data_format", "train_data", "valid_data", "test_data", "sep"),
    *("valid_size", "test_size", "split_type", "min_categr_count", "num_buckets"),
    *("feature_cols", "label_col", "rebuild_dataset", "data_block_size"),
}


def read(folder: Path, experiment: str) -> Imported:
    """Read an experiment from FuxiCTR's folder of configs.

    Args:
        folder: Holds ``dataset_config.yaml`` and ``model_config.yaml``, as FuxiCTR's ``--config``,
            or folders ``dataset_config`` and ``model_config`` of such files.
        experiment: Name in ``model_config.yaml``, as FuxiCTR's ``--expid``; the name of a data set
            in ``dataset_config.yaml`` gives a schema without a recipe.

    Raises:
        ConfigError: A file or an entry is missing or of another shape, or the experiment needs what
            tamis has not.
        DataError: A data file has to be looked into and cannot be read.
    """
    data_sets = read_configs(folder, "dataset_config")
    of_data = holder(data_sets, experiment)
    if of_data is not None:
        with blamed_on(of_data):
            table = as_table(data_sets[of_data][experiment], f"data set {experiment!r}")
            files, schema, vectors, notes = read_data_set(
                folder, experiment, table, model=_over({}, table)
            )
        return Imported(files=files, schema=schema, vectors=vectors, notes=tuple(notes))
    models = read_configs(folder, "model_config")
    of_model = holder(models, experiment)
    if of_model is None:
        known = _names({**data_sets, **models})
        raise ConfigError(
            f"{folder}: must hold the experiment, got {experiment!r}. It holds "
            f"{', '.join(name for name in known if name != 'Base')}."
        )
    model = _experiment(models, of_model, experiment)
    name = model.get("dataset_id")
    of_data = holder(data_sets, name)
    if of_data is None:
        raise ConfigError(
            f"{', '.join(map(str, data_sets))}: must hold the data set {name!r} of experiment "
            f"{experiment!r}, got {', '.join(_names(data_sets))}."
        )
    with blamed_on(of_data):
        table = as_table(data_sets[of_data][str(name)], f"data set {name!r}")
        model = _over(model, table)
        files, schema, vectors, notes = read_data_set(folder, str(name), table, model=model)
    with blamed_on(of_model, experiment):
        recipe = read_recipe(model, notes, has_user=bool(schema.roles.user))
    free = free_names(field.source for field in schema.fields)
    for key in {"first_context", "second_context"} & recipe["model"].keys():
        recipe["model"][key] = [free.get(other, other) for other in recipe["model"][key]]
    return Imported(files=files, schema=schema, vectors=vectors, recipe=recipe, notes=tuple(notes))


def _names(configs: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    return sorted({str(name) for entries in configs.values() for name in entries})


def _experiment(
    models: Mapping[Path, Mapping[str, Any]], path: Path, experiment: str
) -> dict[str, Any]:
    """An experiment over the ``Base`` of its file or, without one, of the first that has it."""
    bases = (entries.get("Base") for entries in (models[path], *models.values()))
    base: object = next(filter(None, bases), {})
    return {**as_table(base, "Base"), **as_table(models[path][experiment], experiment)}


def _over(model: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an experiment, over which FuxiCTR puts those of its data set."""
    return {**model, **{key: value for key, value in table.items() if key not in _OF_DATA}}
