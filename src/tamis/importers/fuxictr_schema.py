"""A data set of FuxiCTR as files and their schema, with a note for what tamis reads otherwise."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tamis.data.readers import NULLS, column_names, discover
from tamis.data.schema import Field, Ignored, Roles, Schema, Side, Task, with_free_names
from tamis.errors import ConfigError
from tamis.importers.fuxictr_attention import attention_of
from tamis.importers.fuxictr_config import as_list, as_table, blamed_on, number

_USER_NAMES = ("user_id", "userid", "uid")
_MAP_OF_VECTORS = r"nn\.Linear\(\d+, *\d+, *bias=False\)"


def read_data_set(
    folder: Path, name: str, table: Mapping[str, Any], *, model: Mapping[str, Any]
) -> tuple[Path | Mapping[str, Path], Schema, dict[str, Path], list[str]]:
    """The files of a data set, what their columns mean, files of vectors by field, and notes.

    Args:
        folder: FuxiCTR's folder of configs.
        name: Name of the data set.
        table: Its entry.
        model: Settings of the experiment; without ``model`` among them there is none.

    Raises:
        ConfigError: An entry is missing or of another shape, or needs what tamis has not.
        DataError: A data file has to be looked into and cannot be read.
    """
    _check_raw(name, table)
    notes: list[str] = []
    files = _files(folder, name, table, notes)
    attention = attention_of(model)
    groups, wanted = attention.groups, model.get("use_features")
    fields, ignored, meta = [], [], {}
    columns = list(_columns(table["feature_cols"]))
    owners = {
        column["name"]
        for column in columns
        if column["type"] == "categorical" and not column.get("share_embedding")
        if column.get("active", True) and (not wanted or column["name"] in wanted)
    }
    for column in columns:
        source = _copied(column.get("preprocess"))
        if not column.get("active", True):
            ignored.append(Ignored(column=column["name"], reason="inactive in FuxiCTR"))
        elif column["type"] == "meta":
            meta[column["name"]] = source or column["name"]
        elif wanted and column["name"] not in wanted:
            ignored.append(Ignored(column=column["name"], reason="not among use_features"))
        elif column["name"] in attention.negatives:
            ignored.append(Ignored(column=column["name"], reason="negatives in FuxiCTR"))
        else:
            with blamed_on(f"column {column['name']!r}"):
                width = _width_of_vectors(column, model) if column.get("pretrained_emb") else 0
                fields.append(_field(column, table, source, groups, owners, width, notes))
    user = _user(meta, model, notes)
    read = {field.source for field in fields} | {user}
    _check_made(columns, read, files)
    notes += _told_of_values(fields, columns, table)
    notes += attention.told_of(fields)
    tasks, others = _tasks(table["label_col"], model, notes)
    ignored += [
        Ignored(column=other, reason="meta in FuxiCTR")
        for other in meta.values()
        if other not in read
    ]
    paths = {column["name"]: str(column.get("pretrained_emb")) for column in columns}
    named = with_free_names(fields)
    vectors = {
        new.name: _found(folder, paths[old.name])
        for old, new in zip(fields, named, strict=True)
        if old.vectors
    }
    schema = Schema(
        fields=named,
        tasks=tasks,
        roles=Roles(user=user),
        ignored=(*ignored, *others),
    )
    return files, schema, vectors, notes


def _check_raw(name: str, table: Mapping[str, Any]) -> None:
    """Refuse a data set that FuxiCTR has encoded, or whose columns stand elsewhere."""
    encoded = table.get("data_format", "csv") not in ("csv", "parquet")
    if encoded or table.get("rebuild_dataset") is False:
        what = table["data_format"] if encoded else "rebuild_dataset: False"
        raise ConfigError(
            f"data set {name!r}: must be raw csv or parquet, got {what!r}, which FuxiCTR has "
            f"encoded already. Name the raw files."
        )
    if "feature_cols" not in table or "label_col" not in table:
        raise ConfigError(
            f"data set {name!r}: must list feature_cols and label_col, got "
            f"{', '.join(table)}. They may stand in a feature map that FuxiCTR wrote; name the "
            f"set that it was made from."
        )


def _files(
    folder: Path, name: str, table: Mapping[str, Any], notes: list[str]
) -> Path | dict[str, Path]:
    """The log of each split or, where there are training data alone, one log to split."""
    files = {
        split: _found(folder, str(table[f"{split}_data"]))
        for split in ("train", "valid", "test")
        if table.get(f"{split}_data")
    }
    got = ", ".join(f"{split}_data" for split in files) or "none"
    if "train" not in files:
        raise ConfigError(f"data set {name!r}: must name train_data, got {got}. Name its file.")
    if "test" in files and "valid" not in files:
        raise ConfigError(
            f"data set {name!r}: must name valid_data beside test_data, got {got}. Cut it from the "
            f"training data, or name train_data alone and let tamis ingest --split cut both."
        )
    is_one = len(files) == 1
    advice = "see tamis ingest --split" if is_one else "each file is a split as it is"
    notes += [
        f"{key} = {table[key]!r} is not carried over; {advice}."
        for key in ("valid_size", "test_size")
        if table.get(key)
    ]
    return files["train"] if is_one else files


def _found(folder: Path, path: str) -> Path:
    """A data file: FuxiCTR is started beside its folder of configs, or elsewhere."""
    places = [folder.parent / path, folder / path, Path(path)]
    for place in places:
        if place.exists():
            return place
    raise ConfigError(
        f"{path}: must exist beside {folder}, in it or here, got no such file. Fetch the data, or "
        f"mend the path."
    )


def _columns(entries: object) -> Iterator[dict[str, Any]]:
    """One entry for each column; FuxiCTR lets columns of one kind share an entry."""
    for entry in as_list(entries, "feature_cols"):
        table = as_table(entry, "feature_cols")
        missing = [key for key in ("name", "type") if key not in table]
        if missing:
            raise ConfigError(
                f"feature_cols: must have a {' and a '.join(missing)}, got {dict(table)!r}."
            )
        names = table["name"] if isinstance(table["name"], list) else [table["name"]]
        for name in names:
            yield {**table, "name": str(name)}


def _copied(preprocess: object) -> str:
    """The column of FuxiCTR's ``copy_from(column)``."""
    found = re.fullmatch(r"copy_from\((.+)\)", str(preprocess or "").strip())
    return found.group(1) if found else ""


def _check_made(
    columns: Sequence[Mapping[str, Any]],
    read: Collection[str],
    files: Path | Mapping[str, Path],
) -> None:
    """Refuse a column that is read and that FuxiCTR makes of others, where the file has none."""
    made = {
        column["name"]: column["preprocess"]
        for column in columns
        if column["name"] in read and column.get("preprocess")
        if not _copied(column["preprocess"])
    }
    if not made:
        return
    log = discover(files if isinstance(files, Path) else files["train"])[0]
    there = column_names(log)
    for name, how in made.items():
        if name not in there:
            raise ConfigError(
                f"column {name!r}: must be in {log.path}, got none: FuxiCTR makes it by {how}. Add "
                f"it to the files, or set active: False."
            )


def _field(
    column: Mapping[str, Any],
    table: Mapping[str, Any],
    source: str,
    groups: Mapping[str, str],
    owners: Collection[str],
    width: int,
    notes: list[str],
) -> Field:
    """The field of a column; ``width`` is that of vectors which are given for it, if any are."""
    name, kind = column["name"], column["type"]
    processor = column.get("category_processor") or column.get("category_encoder")
    if width and (kind not in ("categorical", "sequence") or processor):
        notes.append(
            f"{name}: pretrained_emb = {column['pretrained_emb']!r} is not carried over: vectors "
            f"are for categories of a vocabulary."
        )
        width = 0
    notes += _told_of_vectors(column) if width else []
    for key in ("embedding_dim", "preprocess", "fill_na", "na_value"):
        is_carried = (key == "preprocess" and source) or (key == "embedding_dim" and width)
        if column.get(key) not in (None, "") and not is_carried:
            notes.append(f"{name}: {key} = {column[key]!r} is not carried over.")
    encoders = column.get("feature_encoder")
    for encoder in encoders if isinstance(encoders, list) else [encoders]:
        if encoder in (None, "null", "None", "none", "layers.MaskedAveragePooling()"):
            continue
        if width and re.fullmatch(_MAP_OF_VECTORS, str(encoder)):
            continue
        notes.append(f"{name}: feature_encoder = {encoder!r} is not carried over.")
    common: dict[str, Any] = {"name": name, "column": source, "side": _side(column, notes)}
    if kind == "numeric":
        normalizer = column.get("normalizer") or ""
        if normalizer not in ("", "StandardScaler"):
            notes.append(f"{name}: normalizer {normalizer} became standardisation.")
        transform = "standardise" if normalizer else "none"
        return Field(kind="numeric", transform=transform, **common)  # type: ignore[arg-type]
    shares = column.get("share_embedding") or ""
    if shares and shares not in owners:
        notes.append(
            f"{name}: there is no categorical input {shares} with a table that it could share; it "
            f"has its own."
        )
        shares = ""
    if processor == "quantile_bucket":
        buckets = int(number(column, "num_buckets", number(table, "num_buckets", 10)))
        return Field(kind="numeric", transform="bucket", num_buckets=buckets, **common)
    vectors = 0 if shares else width
    common |= {
        "min_count": 1 if shares or vectors else _min_count(column, table),
        "shares": str(shares),
        "vectors": vectors,
    }
    if processor == "hash_bucket" and not shares:
        buckets = int(number(column, "num_buckets", number(table, "num_buckets", 10)))
        common |= {"encoding": "hashing", "num_buckets": buckets}
    if kind == "sequence":
        longest = int(number(column, "max_len", 0))
        if longest < 1:
            longest = 50
            notes.append(f"{name}: max_len is left to FuxiCTR, which takes the longest; it is 50.")
        if column.get("padding", "post") == "post":
            notes.append(
                f"{name}: padding post makes FuxiCTR keep the first {longest} events of a longer "
                f"history; tamis keeps the last."
            )
        return Field(
            kind="sequence",
            separator=str(column.get("splitter") or "^"),
            max_length=longest,
            group=groups.get(name, ""),
            **common,
        )
    if kind != "categorical":
        raise ConfigError(
            f"type: must be categorical, numeric, sequence or meta, got {kind!r}. Mend it."
        )
    return Field(kind="categorical", **common)


def _width_of_vectors(column: Mapping[str, Any], model: Mapping[str, Any]) -> int:
    """Numbers of a given vector: as the column says, or else as wide as the model's embeddings."""
    for owner, key in (
        (column, "pretrain_dim"),
        (column, "embedding_dim"),
        (model, "embedding_dim"),
    ):
        width = int(number(owner, key, 0))
        if width > 0:
            return width
    raise ConfigError(
        f"pretrained_emb: needs the width of its vectors, got {column['pretrained_emb']!r} without "
        f"one. Set embedding_dim."
    )


def _told_of_vectors(column: Mapping[str, Any]) -> Iterator[str]:
    """What FuxiCTR does with vectors that are given, beside reading them through a linear map."""
    if column.get("freeze_emb") is False:
        yield (
            f"{column['name']}: freeze_emb = False is not carried over; its vectors stay as they "
            f"are, and a linear map of them is learned."
        )
    if column.get("pretrain_usage") in ("sum", "concat"):
        yield (
            f"{column['name']}: pretrain_usage = {column['pretrain_usage']!r} is not carried over; "
            f"add a field of the same column without vectors, whose embeddings are learned."
        )


def _side(column: Mapping[str, Any], notes: list[str]) -> Side:
    """Whom FuxiCTR's ``source`` says that a column describes."""
    for side in ("user", "item"):
        if column.get("source") == side:
            return side
    if column.get("source") not in (None, "", "context"):
        notes.append(f"{column['name']}: source = {column['source']!r} is not carried over.")
    return "context"


def _min_count(column: Mapping[str, Any], table: Mapping[str, Any]) -> int:
    default = number(table, "min_categr_count", 1)
    return max(1, int(number(column, "min_categr_count", default)))


def _user(meta: Mapping[str, str], model: Mapping[str, Any], notes: list[str]) -> str:
    """Column of the user: what the model groups by, else a meta column that is named like one.

    Other meta columns are days or ids of rows: a metric by user over them would mean nothing.
    """
    group = model.get("group_id")
    if group:
        return meta.get(group, str(group))
    named = [source for source in meta.values() if source.lower() in _USER_NAMES]
    if named:
        notes.append(f"{named[0]}: no group_id says who the user is; it is taken by its name.")
        return named[0]
    if meta:
        notes.append(
            f"no group_id says who the user is, nor is a meta column ({', '.join(meta)}) named "
            f"like one; set roles.user of the schema for metrics by user."
        )
    return ""


def _tasks(
    labels: object, model: Mapping[str, Any], notes: list[str]
) -> tuple[tuple[Task, ...], list[Ignored]]:
    """The labels, and those of them that FuxiCTR's models leave out."""
    kinds = model.get("task", "binary_classification")
    found = []
    for place, label in enumerate(labels if isinstance(labels, list) else [labels]):
        table = as_table(label, "label_col")
        if "name" not in table:
            raise ConfigError(f"label_col: must have a name, got {dict(table)!r}.")
        source = _copied(table.get("preprocess"))
        if table.get("preprocess") and not source:
            raise ConfigError(
                f"label_col: preprocess must be copy_from(column), got {table['preprocess']!r}. "
                f"Write the label that it makes into the files."
            )
        kind = kinds[place] if isinstance(kinds, list) and place < len(kinds) else kinds
        is_regression = str(kind) == "regression"
        name = source or str(table["name"])
        # FuxiCTR learns a value as it is, in whatever unit.
        as_it_is = Task(name=name, kind="regression", mean=0.0, std=1.0)
        found.append(as_it_is if is_regression else Task(name=name))
    if "model" not in model or len(found) < 2:
        return tuple(found), []
    others = [task.name for task in found[1:]]
    notes.append(f"{', '.join(others)}: left out; FuxiCTR's models learn the first label alone.")
    reason = "no first label in FuxiCTR"
    return tuple(found[:1]), [Ignored(column=other, reason=reason) for other in others]


def _told_of_values(
    fields: Sequence[Field], columns: Sequence[Mapping[str, Any]], table: Mapping[str, Any]
) -> list[str]:
    """What becomes of missing values and of rare categories."""
    notes = []
    numeric = [field.name for field in fields if field.kind == "numeric" and not field.is_category]
    if numeric:
        notes.append(
            f"{', '.join(numeric)}: FuxiCTR takes a missing number for 0 where fill_na says "
            f"nothing else; tamis takes the mean of the training rows."
        )
    is_text = table.get("data_format", "csv") == "csv"
    if is_text and any(field.kind != "numeric" for field in fields):
        notes.append(
            f"categories: FuxiCTR takes an empty value of a CSV file alone for missing; to tamis "
            f"{', '.join(filter(None, NULLS))} are missing too."
        )
    by_name = {column["name"]: column for column in columns}
    rare = [
        field.name
        for field in fields
        if field.shares
        if any(_min_count(by_name[name], table) > 1 for name in (field.name, field.shares))
    ]
    if rare:
        notes.append(
            f"{', '.join(rare)}: FuxiCTR counts a value for min_categr_count in each column apart; "
            f"tamis counts it in all columns that share a table."
        )
    return notes
