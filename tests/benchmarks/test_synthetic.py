import numpy as np
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st

from tamis.evaluation import evaluate_task


@given(st.integers(min_value=200, max_value=10**7), st.integers(min_value=2, max_value=20))
def test_field_sizes_sum_to_the_total_and_grow(total, num_fields):
    sizes = list(synthetic.field_sizes(total, num_fields).values())
    assert len(sizes) == num_fields
    assert sum(sizes) == total
    assert sizes[0] == synthetic.SMALLEST_FIELD
    assert sizes == sorted(sizes)


def test_field_sizes_below_the_smallest_are_refused():
    with pytest.raises(ValueError, match="must be at least 200 for 20 fields, got 199"):
        synthetic.field_sizes(199, 20)


@given(st.integers(min_value=1, max_value=5000))
def test_scattering_hits_every_id_once(num_values):
    ids = synthetic.scattered(np.arange(num_values), num_values)
    assert sorted(ids.tolist()) == list(range(num_values))


def test_popularity_falls_with_the_rank_and_stays_in_range():
    ranks = synthetic.popular_ranks(np.random.default_rng(0), 1000, 50_000)
    assert ranks.min() == 0
    assert ranks.max() <= 999
    counts = np.bincount(ranks, minlength=1000)
    # A power law with exponent 1.1: rank 0 against ranks 1, 2-3, 4-7 in doubling bins.
    assert counts[0] > counts[1] > counts[10] > counts[100]


def test_pairs_of_fields_enter_the_truth_once_each():
    # Two fields with one value each: logit = bias + e1 + e2 + <v1, v2>.
    truth = synthetic.PlantedTruth(np.random.default_rng(0), [1, 1])
    effects = sum(float(effect[0]) for effect in truth._effects)
    pair = float(truth._factors[0][0].astype(np.float64) @ truth._factors[1][0])
    logit = truth.bias + effects + pair
    found = truth.probabilities(np.zeros((1, 2), np.int64))[0]
    assert found == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-6)


def test_encoded_log_keeps_ids_in_their_tables_and_row_0_free(tmp_path):
    log = synthetic.encoded_log(
        tmp_path, table_rows=1000, train_rows=600, test_rows=200, num_fields=4
    )
    assert sum(log.rows_by_field.values()) == 1000
    train = pq.read_table(log.files["train"])
    assert train.num_rows == 600
    assert pq.read_table(log.files["test"]).num_rows == 200
    for name, rows in log.rows_by_field.items():
        ids = train[name].to_numpy()
        assert ids.min() >= 1
        assert ids.max() <= rows - 1
    assert set(train[synthetic.LABEL].to_pylist()) == {0.0, 1.0}


def test_encoded_log_is_the_same_for_the_same_seed_only(tmp_path):
    sizes = {"table_rows": 500, "train_rows": 100, "test_rows": 50, "num_fields": 3}
    first = synthetic.encoded_log(tmp_path / "a", **sizes)
    again = synthetic.encoded_log(tmp_path / "b", **sizes)
    other = synthetic.encoded_log(tmp_path / "c", **sizes, seed=8)
    read = {
        name: pq.read_table(log.files["train"])
        for name, log in (("first", first), ("again", again), ("other", other))
    }
    assert read["first"] == read["again"]
    assert read["first"] != read["other"]


def test_varied_histories_have_zeros_before_their_first_event_only(tmp_path):
    sizes = {"table_rows": 500, "train_rows": 50, "test_rows": 2000, "num_fields": 3, "history": 30}
    logs = {
        varied: synthetic.encoded_log(tmp_path / str(varied), **sizes, varied=varied)
        for varied in (False, True)
    }
    full, events = (
        np.array(pq.read_table(logs[varied].files["test"])[synthetic.HISTORY].to_pylist())
        for varied in (False, True)
    )
    assert full.min() >= 1
    assert logs[False].mean_history == 30
    lengths = np.count_nonzero(events, axis=1)
    assert lengths.min() >= 1
    assert (lengths == 30).mean() > 0.2  # those that were cut off
    assert np.median(lengths) == pytest.approx(synthetic.MEDIAN_LENGTH, abs=2)
    assert logs[True].mean_history == lengths.mean()
    assert ((events > 0) == (np.arange(30) >= 30 - lengths[:, None])).all()


def test_planted_truth_can_be_learnt_from(tmp_path):
    # The planted probabilities must beat the base rate clearly, or AUC would measure noise.
    log = synthetic.encoded_log(tmp_path, table_rows=10_000, train_rows=1000, test_rows=20_000)
    labels = pq.read_table(log.files["test"])[synthetic.LABEL].to_numpy()
    base_rate = np.full(len(labels), labels.mean())
    constant = evaluate_task(labels, base_rate).to_json()["log_loss"]
    assert log.oracle_log_loss < 0.85 * constant


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_raw_log_holds_strings_of_the_asked_cardinality(tmp_path, suffix):
    path = tmp_path / f"log{suffix}"
    log = synthetic.raw_log(path, num_rows=3000, cardinalities=[3, 50], num_numeric=1)
    table = pc.read_csv(path) if suffix == ".csv" else pq.read_table(path)
    assert table.num_rows == 3000
    assert table.column_names == ["c00", "c01", "n00", synthetic.LABEL]
    assert table.column_names == [*log.categorical, *log.numeric, synthetic.LABEL]
    assert min(table["n00"].to_pylist()) > 0
    assert set(table["c00"].to_pylist()) == {"c00_0", "c00_1", "c00_2"}
    assert len(set(table["c01"].to_pylist())) <= 50
    assert 0.15 < np.mean(table[synthetic.LABEL].to_numpy()) < 0.25
