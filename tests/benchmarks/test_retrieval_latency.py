import pytest
import retrieval_latency
import torch


@pytest.mark.slow
def test_every_way_is_measured_on_the_full_corpus(tmp_path):
    published, work = tmp_path / "set", tmp_path / "work"
    published.mkdir()
    work.mkdir()
    retrieval_latency.make_up(published, 400, 80)
    size = retrieval_latency.Size(items=400, users=80, epochs=1, requests=4, codebooks=(4, 3))
    world = retrieval_latency.make_world(published, work, size)
    points, best = list(retrieval_latency.points(world)), {}
    rows = [retrieval_latency.measure(point, world, best) for point in points]

    ways = {row["way"] for row in rows}
    assert {"exact", "rerank", "leaf", "kmeans_tree", "hsnn"} <= ways
    assert len(world.task.requests) == 4
    num_items = sum(len(ids) for ids, _ in world.task.corpus())
    for row in rows:
        assert row["items"] == num_items
        assert row["p50_ms"] > 0
        assert 0 <= row["recall"] <= 1
        assert 0 <= row["kept"] <= 1
    # Everything that scores all its items keeps all of what its model prefers.
    for way in ("exact", "leaf", "kmeans_tree", "hsnn"):
        last = [row for row in rows if row["way"] == way][-1]
        assert last["kept"] == 1.0, way
        assert last["pairs"] >= num_items
    assert len(best) == 4  # two towers, the leaf, and two trees


def test_ratio_is_of_the_fastest_own_point_that_recalls_as_much():
    rows = [
        {"way": "exact", "recall": 0.5, "p50_ms": 6.0},
        {"way": "ivf", "recall": 0.3, "p50_ms": 1.0},
        {"way": "ivf", "recall": 0.9, "p50_ms": 3.0},
        {"way": "hsnn", "recall": 0.4, "p50_ms": 2.0},
        {"way": "hsnn", "recall": 0.6, "p50_ms": 3.0},
        {"way": "hsnn", "recall": 0.6, "p50_ms": 4.0},
    ]
    ratios, unreached = retrieval_latency.compare(rows)

    # 6 over 3; 1 over 2; nothing of HSNN's recalls 0.9.
    assert ratios["exact/hsnn, p50 at equal recall"].median == 2.0
    assert ratios["ivf/hsnn, p50 at equal recall"].median == 0.5
    assert unreached == {"exact": 0, "ivf": 1}


def test_made_up_users_stay_in_their_groups(tmp_path):
    retrieval_latency.make_up(tmp_path, 500, 40)
    task = retrieval_latency.retrieval.amazon(tmp_path)

    assert task.num_items == 500
    for history in task.goals["test"].requests["history_category"].to_pylist():
        assert len(set(history)) <= 3
    assert torch.tensor(task.matched).bincount().max() == retrieval_latency.GROUP
