"""The machine's clock."""

from concurrent import futures

from tamis.funnel.clock import SystemClock


def test_time_does_not_go_back() -> None:
    clock = SystemClock()
    times = [clock.now_ms() for _ in range(100)]

    assert times == sorted(times)


def test_work_that_ended_is_in_time_even_after_the_moment() -> None:
    clock = SystemClock()
    done: futures.Future[int] = futures.Future()
    done.set_result(1)

    assert clock.wait(done, until_ms=clock.now_ms() - 1)
    assert not clock.wait(futures.Future(), until_ms=clock.now_ms() - 1)
