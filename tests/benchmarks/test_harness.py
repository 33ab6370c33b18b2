import json

import harness
import pytest


def test_ratio_is_the_median_of_the_pairs_own_ratios():
    # Pairs (8, 2), (9, 3), (10, 1): ratios 4, 3, 10; the ratio of medians would be 9 / 2 = 4.5.
    ratio = harness.ratio_of([(8.0, 2.0), (9.0, 3.0), (10.0, 1.0)])
    assert ratio.to_json() == {"median": 4.0, "min": 3.0, "max": 10.0, "pairs": 3}


def test_ratio_of_no_pairs_is_refused():
    with pytest.raises(ValueError, match="at least one pair"):
        harness.ratio_of([])


@pytest.mark.parametrize("pair", [(0.0, 1.0), (1.0, 0.0), (float("nan"), 1.0)])
def test_ratio_of_a_cost_that_is_not_positive_is_refused(pair):
    with pytest.raises(ValueError, match="costs must be positive"):
        harness.ratio_of([pair])


def test_contenders_take_turns_and_rounds_stay_aligned():
    calls = []

    def measure(name, cost):
        calls.append(name)
        return cost * len(calls)

    costs = harness.interleave(
        {"peer": lambda: measure("peer", 10.0), "tamis": lambda: measure("tamis", 1.0)}, rounds=2
    )
    assert calls == ["peer", "tamis", "peer", "tamis"]
    # Calls 1 and 3 are the peer's, 2 and 4 are tamis'.
    assert costs == {"peer": [10.0, 30.0], "tamis": [2.0, 4.0]}


def test_json_has_the_form_that_is_kept_stable(tmp_path):
    path = tmp_path / "new" / "out.json"
    ratio = harness.ratio_of([(6.0, 2.0)])
    harness.write_json(path, "loader", quick=True, rows=[{"x": 1}], ratios={"a/b": ratio})
    document = json.loads(path.read_text())
    assert list(document) == ["benchmark", "machine", "commit", "quick", "rows", "ratios"]
    assert document["benchmark"] == "loader"
    assert document["quick"] is True
    assert document["rows"] == [{"x": 1}]
    assert document["ratios"] == {"a/b": {"median": 3.0, "min": 3.0, "max": 3.0, "pairs": 1}}
    assert {"cpu", "cores", "memory_bytes", "torch", "load_average"} <= set(document["machine"])


def test_a_claim_that_does_not_hold_is_said_so():
    ratios = {"slow": harness.ratio_of([(2.0, 1.0)]), "fast": harness.ratio_of([(9.0, 1.0)])}
    table = harness.ratio_table(ratios, {"slow": 2.5, "fast": 2.5})
    holds = next(column for column in table.columns if column.header == "holds")
    assert list(holds.cells) == ["NO", "yes"]


def test_a_failed_row_shows_its_error_and_no_figures():
    rows = [{"who": "a", "rate": 10.0}, {"who": "b", "error": "ImportError: no module"}]
    table = harness.table_of("t", {"who": str, "rate": lambda value: f"{value:.1f}"}, rows)
    assert [column.header for column in table.columns] == ["who", "rate", "error"]
    assert list(table.columns[1].cells) == ["10.0", ""]
    assert list(table.columns[2].cells) == ["", "ImportError: no module"]
