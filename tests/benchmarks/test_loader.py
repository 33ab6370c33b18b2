import loader
import pytest


def test_seconds_of_a_part_are_scaled_to_the_epoch(monkeypatch):
    ticks = iter([100.0, 103.0])
    monkeypatch.setattr(loader.time, "perf_counter", lambda: next(ticks))
    drawn = []

    def batches():
        for number in range(100):
            drawn.append(number)
            yield number

    # 3 s for two batches of 4096 rows; an epoch has ten times as many.
    seconds = loader.seconds_of(
        batches(), num_rows=20 * loader.BATCH_SIZE, max_rows=2 * loader.BATCH_SIZE
    )
    assert len(drawn) == 2
    assert seconds == pytest.approx(30.0)


def test_seconds_of_an_epoch_with_a_short_last_batch_are_not_scaled(monkeypatch):
    ticks = iter([0.0, 5.0])
    monkeypatch.setattr(loader.time, "perf_counter", lambda: next(ticks))
    seconds = loader.seconds_of(iter(range(2)), num_rows=loader.BATCH_SIZE + 1)
    assert seconds == pytest.approx(5.0)
