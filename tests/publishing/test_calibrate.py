"""Calibration of served heads: sums agree for each billing, and targets are the right ones."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tamis import artifacts
from tamis.data.dataset import Dataset, DatasetWriter, EncodedRows
from tamis.data.schema import CategoricalInput, Field, InputSpec, Roles, Schema, Table, Task
from tamis.errors import DataError
from tamis.funnel.ads import AdTable
from tamis.funnel.inventory import Inventory
from tamis.models.early_serving import ServedHead
from tamis.publishing.calibrate import fit_calibration

_TASKS = (
    Task(name="click"),
    Task(name="spend", kind="regression"),
    Task(name="final_click", kind="probability", distils="click"),
)
_ROWS, _ADS = 4000, 10


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def _write_predictions(folder: Path, columns: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    path = str(folder / "valid.arrow")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    artifacts.write_manifest(
        folder, kind="predictions", version=1, files=folder.glob("*.arrow"), payload={}
    )


@pytest.fixture
def world(tmp_path: Path) -> tuple[Dataset, Inventory, dict[str, np.ndarray]]:
    """A run's validation split: ads 0 to 8 are in the inventory, the odd ones pay by conversion."""
    schema = Schema(
        fields=(Field(name="ad", kind="categorical", side="item"),),
        tasks=_TASKS,
        roles=Roles(item="ad"),
    )
    spec = InputSpec(
        numeric=(),
        categorical=(CategoricalInput(name="ad", table="ad", side="item"),),
        sequences=(),
        tables=(Table(name="ad", num_rows=_ADS),),
        tasks=_TASKS,
    )
    generator = np.random.default_rng(0)
    ad, logit = generator.integers(0, _ADS, _ROWS), generator.normal(-1, 1, _ROWS)
    # Ads that pay by the conversion are clicked more often than both heads say.
    truth = _sigmoid(logit + 0.8 * (ad % 2))
    labels = {
        "click": (generator.random(_ROWS) < truth).astype(np.float32),
        "spend": generator.normal(size=_ROWS).astype(np.float32),
        "final_click": _sigmoid(logit + 0.3 - 0.6 * (ad % 2)).astype(np.float32),
    }
    labels["final_click"][:50] = np.nan  # never scored by the final stage
    rows = EncodedRows(
        row=np.arange(_ROWS), ids={"ad": ad.astype(np.int32)}, labels=labels,
        roles={"item": ad.astype(np.int64) * 3},
    )  # fmt: skip
    with DatasetWriter(tmp_path / "data", schema, spec) as writer:
        (writer.encoders_path / "encoders.json").write_text("{}")
        writer.append("valid", rows)
        dataset = writer.finish({})
    columns = {f"label:{name}": values for name, values in labels.items()}
    columns |= {
        "prediction:click": _sigmoid(logit),
        "prediction:spend": logit,
        "prediction:final_click": _sigmoid(logit + 0.5),
        "item": ad,
    }
    _write_predictions(tmp_path / "run" / "predictions", columns)
    count = _ADS - 1
    inventory = Inventory(
        codes=np.arange(count)[::-1] * 3,
        attributes=AdTable(
            bid=np.ones(count),
            billing=np.array(["click", "conversion"])[np.arange(count)[::-1] % 2],
            advertiser=np.arange(count),
            quality=np.zeros(count),
        ),
        rows=EncodedRows(row=np.arange(count)),
        popularity=np.zeros(count),
    )
    return dataset, inventory, columns


@pytest.mark.parametrize("method", ["platt", "isotonic"])
@pytest.mark.parametrize(
    ("head", "target", "shift"),
    [
        (None, "click", 0.0),
        ("label", "click", 0.0),
        ("distilled", "final_click", 0.5),
        ("mean", "final_click", 0.25),
    ],
)
def test_predictions_add_up_to_their_targets_for_each_billing(
    world: tuple, tmp_path: Path, method: str, head: ServedHead | None, target: str, shift: float
) -> None:
    dataset, inventory, columns = world

    found = fit_calibration(tmp_path / "run", dataset, inventory, method=method, head=head)  # type: ignore[arg-type]

    assert found.by_task.keys() == {"click"}  # neither money nor what another stage predicts
    wanted = columns[f"label:{target}"].astype(np.float64)
    known = ~np.isnan(wanted) & (columns["item"] < _ADS - 1)
    logit = columns["prediction:spend"]
    billing = np.where(columns["item"] % 2 == 1, "conversion", "click")
    served = found.apply({"click": _sigmoid(logit + shift)}, billing)["click"]
    for way in ("click", "conversion"):
        own = known & (billing == way)
        # The bar of a served head is 3 %; on the fitted rows sums agree to rounding.
        assert served[own].sum() / wanted[own].sum() == pytest.approx(1, abs=1e-6)
    # Without a map of its own, a group would be off by a third.
    plain = _sigmoid(logit + shift)[known & (billing == "conversion")].sum()
    assert abs(plain / wanted[known & (billing == "conversion")].sum() - 1) > 0.1


def test_rejected_candidates_of_a_cascade_count_for_nothing(world: tuple, tmp_path: Path) -> None:
    dataset, inventory, columns = world
    plain = fit_calibration(tmp_path / "run", dataset, inventory, method="platt", head="distilled")
    split, again = dataset.split("valid"), np.concatenate([np.arange(_ROWS)] * 2)
    rows = EncodedRows(
        row=again,
        ids={"ad": split.ids("ad")[again]},
        labels={task.name: columns[f"label:{task.name}"][again] for task in _TASKS},
        roles={"item": split.role("item")[again], "pool": np.repeat([1, 2], _ROWS)},
    )
    with DatasetWriter(tmp_path / "cascade", dataset.schema, dataset.spec) as writer:
        (writer.encoders_path / "encoders.json").write_text("{}")
        writer.append("valid", rows)
        cascade = writer.finish({})
    doubled = {name: values[again] for name, values in columns.items()}
    doubled["label:final_click"][_ROWS:] = 0.9  # as if the final stage loved what was turned away
    _write_predictions(tmp_path / "again" / "predictions", doubled)

    found = fit_calibration(
        tmp_path / "again", cascade, inventory, method="platt", head="distilled"
    )

    assert found.to_json() == plain.to_json()


def test_rows_of_other_ads_count_for_no_billing(world: tuple, tmp_path: Path) -> None:
    dataset, inventory, _ = world

    found = fit_calibration(tmp_path / "run", dataset, inventory, method="platt", head=None)

    assert found.by_task["click"].by_group.keys() == {"click", "conversion", "unknown"}
    assert found.by_task["click"].by_group["click"] != found.by_task["click"].other


def test_task_that_decides_nothing_may_be_left_as_it_is(world: tuple, tmp_path: Path) -> None:
    dataset, inventory, columns = world
    never = {**columns, "label:click": np.zeros(_ROWS, np.float32)}
    _write_predictions(tmp_path / "never" / "predictions", never)

    found = fit_calibration(
        tmp_path / "never", dataset, inventory, method="platt", head=None, needed=("conversion",)
    )

    assert not found.by_task


def test_task_that_cannot_be_fitted_is_named(world: tuple, tmp_path: Path) -> None:
    dataset, inventory, columns = world
    never = {**columns, "label:click": np.zeros(_ROWS, np.float32)}
    _write_predictions(tmp_path / "run" / "predictions", never)

    with pytest.raises(DataError, match=r"run, task 'click', split 'valid': platt: .* leave cal"):
        fit_calibration(tmp_path / "run", dataset, inventory, method="platt", head="label")


def test_log_that_does_not_name_its_ads_is_refused(world: tuple, tmp_path: Path) -> None:
    dataset, inventory, _ = world
    split = dataset.split("valid")
    rows = EncodedRows(
        row=np.arange(1), ids={"ad": split.ids("ad")[:1]},
        labels={task.name: np.zeros(1, np.float32) for task in _TASKS},
    )  # fmt: skip
    with DatasetWriter(tmp_path / "bare", dataset.schema, dataset.spec) as writer:
        (writer.encoders_path / "encoders.json").write_text("{}")
        writer.append("valid", rows)
        bare = writer.finish({})

    with pytest.raises(DataError, match=r"must have the role 'item' to calibrate by billing"):
        fit_calibration(tmp_path / "run", bare, inventory, method="platt", head=None)
