import loader
import pytest


def test_seconds_of_a_part_are_scaled_to_the_epoch(monkeypatch):
    ticks = iter([100.0, 101.0, 103.0])
    monkeypatch.setattr(loader.time, "perf_counter", lambda: next(ticks))
    drawn = []

    def batches():
        for number in range(100):
            drawn.append(number)
            yield number

    # A second for the shuffle and the first batch, 2 s for two more; an epoch has 19 of those.
    seconds = loader.seconds_of(
        batches(), num_rows=20 * loader.BATCH_SIZE, max_rows=3 * loader.BATCH_SIZE
    )
    assert len(drawn) == 3
    assert seconds == pytest.approx(20.0)


def test_seconds_of_an_epoch_with_a_short_last_batch_are_not_scaled(monkeypatch):
    ticks = iter([0.0, 2.0, 5.0])
    monkeypatch.setattr(loader.time, "perf_counter", lambda: next(ticks))
    seconds = loader.seconds_of(iter(range(1, 3)), num_rows=loader.BATCH_SIZE + 1)
    assert seconds == pytest.approx(5.0)
