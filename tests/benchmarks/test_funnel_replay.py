import funnel_replay


def test_measured_funnel_narrows_and_never_falls_back(monkeypatch):
    monkeypatch.setattr(funnel_replay, "USERS", 50)
    row = funnel_replay.measure(2000, 3, rounds=1, threads=1)

    assert row["fallbacks"] == 0
    assert row["requests"] == 3
    assert row["requests_per_second"] == 1000 / row["mean_ms"][0]

    funnel, spec = funnel_replay.make_funnel(2000)
    trace = funnel.answer(next(funnel_replay.draw_requests(spec, 1, seed=5)))
    assert [stage.num_candidates for stage in trace.stages] == [2000, 1000, 100]
    assert [len(stage.ads) for stage in trace.stages] == [1000, 100, 10]
    assert len(trace.slate.ads) == 4
