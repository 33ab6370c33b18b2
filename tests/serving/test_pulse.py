"""Ticks of a server: what is counted when, quantiles near the true ones, and a long silence."""

import numpy as np
import pytest

from tamis.serving.pulse import NUM_TICKS, TICK_S, Pulse, Tick

SILENCE = Tick(ranked=0, turned_away=0, p50_ms=None, p99_ms=None)


class Clock:
    """Stands still until it is told."""

    now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_each_tick_holds_what_came_in_it(clock: Clock) -> None:
    pulse = Pulse(clock)
    pulse.ranked(0.01)
    pulse.turned_away()
    clock.now += TICK_S * 0.9
    pulse.ranked(0.01)
    # The tick that runs would tell of half of itself.
    assert pulse.ticks() == []
    clock.now += TICK_S * 0.2
    pulse.turned_away()
    clock.now += 2 * TICK_S

    first, second, third = pulse.ticks()

    assert (first.ranked, first.turned_away) == (2, 1)
    assert (second.ranked, second.turned_away, second.p50_ms) == (0, 1, None)
    assert third == SILENCE


@pytest.mark.parametrize("scale", [1e-3, 0.05, 4.0])
def test_quantiles_are_off_by_a_bin_at_most(clock: Clock, scale: float) -> None:
    seconds = np.random.default_rng(0).lognormal(np.log(scale), 0.5, 1001)
    pulse = Pulse(clock)
    for value in seconds:
        pulse.ranked(float(value))
    clock.now += TICK_S

    (tick,) = pulse.ticks()

    for share, found in ((0.5, tick.p50_ms), (0.99, tick.p99_ms)):
        true_ms = 1e3 * float(np.quantile(seconds, share, method="inverted_cdf"))
        assert found is not None
        assert true_ms <= found <= true_ms * 1.0501


def test_silence_has_as_many_ticks_as_are_kept(clock: Clock) -> None:
    pulse = Pulse(clock)
    pulse.ranked(1e9)
    pulse.ranked(0.0)
    clock.now += 1e6 * TICK_S

    assert pulse.ticks() == [SILENCE] * NUM_TICKS
    # The next tick begins where it would have begun without the silence.
    clock.now += TICK_S * 0.5
    pulse.ranked(0.01)
    clock.now += TICK_S * 0.5
    assert pulse.ticks()[-1].ranked == 1
