"""``tamis ingest``: what it says about an inferred schema, and what it refuses."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from typer.testing import Result

from tamis.data.market.schema import market_schema
from tamis.serving.records import Event, ServedRequest, ShownAd
from tamis.serving.store import Store

_JANUARY = 1_704_067_200_000_000


@pytest.fixture
def leaky(world: Path) -> Path:
    """The log with a column that gives the label away, and one of a single value."""
    table = pyarrow.csv.read_csv(world / "that.csv")
    table = table.append_column("paid", table["y"])
    table = table.append_column("site", pa.array(["x"] * table.num_rows))
    pyarrow.csv.write_csv(table, world / "leaky.csv")
    return world / "leaky.csv"


@pytest.mark.parametrize("more", [("--schema-only", "--out", "s.toml"), ("--out", "new")])
def test_warnings_of_inference_are_printed_and_in_json(
    leaky: Path,
    tamis: Callable[..., Result],
    tamis_json: Callable[..., dict[str, Any]],
    more: tuple[str, ...],
) -> None:
    command = ("ingest", "leaky.csv", "--label", "y", *more)

    warnings = tamis_json(*command)["warnings"]

    assert [warning.split(":")[0] for warning in warnings] == ["paid", "site", "time"]
    assert "gives the label away" in warnings[0]
    if "--schema-only" in more:
        output = " ".join(tamis(*command).output.split())
        assert "warning: paid: left out, it gives the label away" in output


def test_ingest_says_how_the_rows_were_split(world: Path, tamis: Callable[..., Result]) -> None:
    result = tamis("ingest", "that.csv", "--label", "y", "--split", "user", "--out", "new")

    assert result.exit_code == 0, result.output
    assert "split at random by user: 10 % validation, 10 % test" in result.output


def test_ingest_says_the_labels_and_their_rates(world: Path, tamis: Callable[..., Result]) -> None:
    result = tamis("ingest", "that.csv", "--label", "y", "--label", "price", "--out", "new")

    assert re.search(r"label y \(binary\): base rate 0\.3\d\d\d in training", result.output)
    assert re.search(r"label price \(regression\): mean \d\.\d+ in training", result.output)


def test_json_of_ingest_holds_split_and_counts(
    world: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    found = tamis_json("ingest", "that.csv", "--label", "y", "--test", "0.2", "--out", "new")

    assert found["split"]["by"] == "ratio"
    assert found["split"]["test"] == 0.2
    assert 0.3 < found["label_rates"]["y"] < 0.4
    assert found["fields"]["price"]["missing"] == 0
    assert sum(found["rows"].values()) == found["fields"]["price"]["rows"] == 1200


def test_field_that_is_new_in_every_later_row_is_said(
    world: Path, tamis: Callable[..., Result], tamis_json: Callable[..., dict[str, Any]]
) -> None:
    table = pyarrow.csv.read_csv("that.csv")
    table = table.append_column("t", pa.array(range(1_700_000_000, 1_700_001_200)))
    days = [f"d{row // 60}" for row in range(1200)]
    pyarrow.csv.write_csv(table.append_column("day_name", pa.array(days)), "days.csv")
    command = ("ingest", "days.csv", "--schema", "s.toml")
    tamis("ingest", "days.csv", "--label", "y", "--schema-only", "--out", "s.toml")
    text = Path("s.toml").read_text()
    Path("s.toml").write_text(text.replace("[roles]\n", '[roles]\ntime = "t"\n'))

    output = " ".join(tamis(*command, "--out", "new").output.split())
    warnings = tamis_json(*command, "--out", "other")["warnings"]

    (said,) = warnings
    assert said.startswith("day_name: no row of valid and test has a value that training rows have")
    assert f"warning: {said}" in output


def test_store_that_is_not_there_is_not_made(world: Path, refused: Callable[..., str]) -> None:
    message = refused("ingest", "sqlite:///nothere.db", "--out", "x")

    assert "nothere.db: must be a store that a server has kept, got no file nothere.db" in message
    assert not Path("nothere.db").exists()


def test_what_is_wrong_with_a_store_names_the_store(
    world: Path, refused: Callable[..., str]
) -> None:
    Path("schema.toml").write_text(market_schema().to_toml())
    served = ServedRequest(
        request_id="r", user="u", time_micros=_JANUARY, release="f" * 64, columns={},
        shown=(ShownAd(ad="7", columns={}),),
    )  # fmt: skip
    seen = Event(
        event_id="e", kind="impression", ad="7", user="u", request_id="r", time_micros=_JANUARY
    )
    with contextlib.closing(Store("sqlite:///s.db")) as store:
        store.append([served], [seen])

    message = refused(
        "ingest", "sqlite:///s.db", "--schema", "schema.toml", "--split", "ratio", "--out", "x"
    )

    assert "sqlite:///s.db" in message
    assert "store.parquet" not in message


def test_schema_beside_options_that_it_decides_is_refused(
    world: Path, refused: Callable[..., str]
) -> None:
    schema = ("ingest", "that.csv", "--schema", "d/schema.toml", "--out", "new")

    assert "--schema: must not be given with --label, got d/schema.toml beside" in refused(
        *schema, "--label", "price"
    )
    assert "--schema: must not be given with --schema-only" in refused(*schema, "--schema-only")
    assert not Path("new").exists()


@pytest.mark.parametrize("out", ["that.csv", "schema.csv"])
def test_schema_is_not_written_to_a_file_of_another_kind(
    world: Path, refused: Callable[..., str], out: str
) -> None:
    message = refused("ingest", "that.csv", "--label", "y", "--schema-only", "--out", out)

    assert f"{out}: must be a .toml file or a folder, got the ending '.csv'" in message
    assert not Path("schema.csv").exists()


def test_schema_that_may_have_been_edited_is_not_written_over(
    world: Path, tamis: Callable[..., Result], refused: Callable[..., str]
) -> None:
    infer = ("ingest", "that.csv", "--label", "y", "--schema-only", "--out", "mine.toml")
    assert [tamis(*infer).exit_code for _ in range(2)] == [0, 0]
    edited = Path("mine.toml").read_text() + "# mine\n"
    Path("mine.toml").write_text(edited)

    assert "mine.toml: must not exist yet, got a schema that may have been" in refused(*infer)
    assert Path("mine.toml").read_text() == edited


def test_schema_that_is_a_folder_is_refused(world: Path, refused: Callable[..., str]) -> None:
    message = refused("ingest", "that.csv", "--schema", "d", "--out", "new")

    assert "d: must be a schema file, got a folder. Name the file" in message


@pytest.fixture
def of_fuxictr(world: Path) -> Path:
    """A folder of configuration files as FuxiCTR's, for the log of three columns."""
    Path("config").mkdir()
    Path("config", "dataset_config.yaml").write_text(
        "clicks:\n  train_data: that.csv\n  valid_data: that.csv\n  test_data: that.csv\n"
        "  feature_cols:\n"
        "  - {name: [user_id, item_id], active: true, dtype: str, type: categorical}\n"
        "  - {name: price, active: true, dtype: float, type: numeric}\n"
        "  label_col: {name: y, dtype: float}\n"
    )
    Path("config", "model_config.yaml").write_text(
        "LR_clicks: {model: LR, dataset_id: clicks, learning_rate: 0.01, batch_size: 256,\n"
        "  epochs: 1, monitor: logloss}\n"
    )
    return world


def test_experiment_of_fuxictr_is_ingested_and_trained(
    of_fuxictr: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    made = tamis_json(
        *("ingest", "config", "--from", "fuxictr", "--experiment", "LR_clicks", "--out", "f")
    )
    tamis_json("train", "f", "--recipe", "f-recipe.toml", "--run", "r", "--no-report")

    assert made["rows"] == {"train": 1200, "valid": 1200, "test": 1200}
    assert "embedding_lr = 0.01" in Path("r", "config.toml").read_text()


def test_printed_command_of_an_import_can_be_copied(
    of_fuxictr: Path, tamis: Callable[..., Result]
) -> None:
    arguments = ("--from", "fuxictr", "--experiment", "LR_clicks", "--out", "my clicks")

    printed = tamis("ingest", "config", *arguments).output

    assert "tamis train 'my clicks' --recipe 'my clicks-recipe.toml'" in printed


@pytest.mark.parametrize("options", [("--split", "time"), ("--valid", "0.1"), ("--test", "0.2")])
def test_splits_of_a_set_up_are_not_split_again(
    of_fuxictr: Path, refused: Callable[..., str], options: tuple[str, str]
) -> None:
    message = refused(
        *("ingest", "config", "--from", "fuxictr", "--experiment", "LR_clicks", "--out", "f"),
        *options,
    )

    assert (
        f"{options[0]}: must not be given for logs that are split already, got train, valid, test "
        "of config. Leave it out." in message
    )
    assert not Path("f").exists()


def test_one_log_of_a_set_up_is_split_as_the_options_say(
    of_fuxictr: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    path = Path("config", "dataset_config.yaml")
    lines = [line for line in path.read_text().splitlines() if "valid_data" not in line]
    path.write_text("\n".join(line for line in lines if "test_data" not in line))

    made = tamis_json(
        *("ingest", "config", "--from", "fuxictr", "--experiment", "LR_clicks", "--out", "f"),
        *("--split", "ratio", "--test", "0.3"),
    )

    assert (made["split"]["by"], made["split"]["test"]) == ("ratio", 0.3)


def test_schema_of_a_set_up_can_be_edited(
    of_fuxictr: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    command = ("ingest", "config", "--from", "fuxictr", "--experiment", "LR_clicks")
    made = tamis_json(*command, "--schema-only", "--out", "mine.toml")
    text = Path("mine.toml").read_text()
    assert made["out"] == "mine.toml"
    assert any(warning.startswith("categories:") for warning in made["warnings"])
    Path("mine.toml").write_text(
        text.replace("[[tasks]]", '[roles]\nuser = "user_id"\n\n[[tasks]]')
    )

    tamis_json(*command, "--schema", "mine.toml", "--out", "f")

    assert 'user = "user_id"' in Path("f", "schema.toml").read_text()
    assert Path("f-recipe.toml").exists()


@pytest.fixture
def of_recbole(world: Path) -> Path:
    """A folder of RecBole's atomic files."""
    Path("tiny").mkdir()
    rows = [f"{n % 7}\t{n % 5}\t{n % 6}\t{880_000_000 + n}" for n in range(200)]
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    Path("tiny", "tiny.inter").write_text("\n".join([header, *rows]) + "\n")
    return world


def test_schema_of_recbole_leaves_no_log(
    of_recbole: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    before = set(Path().iterdir())
    tamis_json(
        *("ingest", "tiny", "--from", "recbole", "--label", "rating", "--threshold", "4"),
        *("--schema-only", "--out", "mine.toml"),
    )

    assert set(Path().iterdir()) - before == {Path("mine.toml")}
    assert 'item = "item_id"' in Path("mine.toml").read_text()


def test_data_set_of_recbole_is_ingested(
    of_recbole: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    made = tamis_json(
        *("ingest", "tiny", "--from", "recbole", "--label", "rating", "--threshold", "4"),
        *("--out", "t"),
    )

    assert sum(made["rows"].values()) == 200
    assert made["split"]["by"] == "time"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--from", "fuxictr"), "--from fuxictr: needs --experiment and takes no --label"),
        (
            ("--from", "fuxictr", "--experiment", "x", "--threshold", "1"),
            "takes no --label and no --threshold",
        ),
        (("--from", "recbole"), "--from recbole: needs one --label, got 0 labels. Name the"),
        (
            ("--from", "recbole", "--label", "rating", "--experiment", "x"),
            "--from recbole: takes no --experiment, which is FuxiCTR's, got 'x'. Leave it out.",
        ),
        (
            ("--from", "recbole", "--schema", "s.toml", "--schema-only"),
            "--schema: must not be given with --schema-only, got s.toml. Leave one of the two out.",
        ),
        (("--experiment", "x"), "--experiment: goes with --from, got none"),
        (("--from", "recbole", "b"), "--from: takes one folder, got 2 paths"),
    ],
)
def test_options_of_an_import_are_checked(
    world: Path, refused: Callable[..., str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused("ingest", "a", *arguments, "--out", "o")


_LOOKS = """
[[tasks]]
name = "y"

[[fields]]
name = "look"
column = "item_id"
kind = "categorical"
vectors = 3
"""


def _with_looks(world: Path) -> None:
    (world / "looks.toml").write_text(_LOOKS)
    # Of items 0 to 19: a third of the rows are of the ten others.
    table = pa.table({"key": range(20), "value": [[1.0, 2.0, float(n)] for n in range(20)]})
    pyarrow.parquet.write_table(table, world / "looks.parquet")


def test_vectors_are_given_by_field(world: Path, tamis_json: Callable[..., dict[str, Any]]) -> None:
    _with_looks(world)
    command = ("ingest", "that.csv", "--schema", "looks.toml", "--out", "new")
    found = tamis_json(*command, "--vectors", "look=looks.parquet")

    assert 0.2 < found["fields"]["look"]["unknown"] / found["fields"]["look"]["rows"] < 0.5
    run = tamis_json(
        "train", "new", "--model", "lr", "--run", "r", "--set", "training.max_epochs=1"
    )
    assert run["metrics"]["test"]["y"]["rows"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "must name the file of field 'look', whose vectors are given, got none. Name it:"),
        (("--vectors", "look"), "--vectors: must be FIELD=FILE, got 'look'"),
        (("--vectors", "look=") * 2, "--vectors: must be FIELD=FILE, got 'look='"),
        (("--vectors", "look=a.npz") * 2, "--vectors: must name a field once, got 'look' again"),
        (
            ("--vectors", "look=a.npz", "--schema-only"),
            "--vectors: must not be given with --schema-only",
        ),
        (("--vectors", "look=a.npz"), "a.npz: must be a file of vectors, got no file there"),
    ],
)
def test_vectors_of_no_field_or_file_are_refused(
    world: Path, tamis: Callable[..., Result], options: tuple[str, ...], message: str
) -> None:
    _with_looks(world)
    result = tamis("ingest", "that.csv", "--schema", "looks.toml", "--out", "new", *options)

    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert not (world / "new").exists()


def test_vectors_of_a_set_up_are_read_unless_the_schema_has_no_place_for_them(
    of_fuxictr: Path, tamis_json: Callable[..., dict[str, Any]]
) -> None:
    path = Path("config", "dataset_config.yaml")
    look = (
        "  - {name: look, active: true, dtype: str, type: categorical, embedding_dim: 3,\n"
        "     preprocess: copy_from(item_id), pretrained_emb: looks.parquet}\n"
    )
    path.write_text(path.read_text().replace("  label_col", f"{look}  label_col"))
    _with_looks(of_fuxictr)
    command = ("ingest", "config", "--from", "fuxictr", "--experiment", "LR_clicks")
    tamis_json(*command, "--out", "f")
    tamis_json("train", "f", "--recipe", "f-recipe.toml", "--run", "r", "--no-report")
    assert Path("f", "vectors.safetensors").exists()

    mine = _LOOKS.replace("vectors = 3\n", "")
    Path("mine.toml").write_text(mine)
    tamis_json(*command, "--schema", "mine.toml", "--out", "g")
    assert not Path("g", "vectors.safetensors").exists()
