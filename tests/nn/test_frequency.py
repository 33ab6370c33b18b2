"""The streaming estimate of frequencies against a slow loop, and against the truth."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.nn.frequency import StreamingFrequency

_ITEMS = 7


def _slow(rows: list[int], rate: float) -> list[float]:
    """Share of each item, a row at a time in float64."""
    last = [-1] * _ITEMS
    total, mass = [rate * _ITEMS] * _ITEMS, [rate] * _ITEMS
    for clock, item in enumerate(rows):
        if last[item] >= 0:
            total[item] = (1 - rate) * total[item] + rate * (clock - last[item])
            mass[item] = (1 - rate) * mass[item] + rate
        last[item] = clock
    return [m / t for m, t in zip(mass, total, strict=True)]


def _shares(model: StreamingFrequency) -> torch.Tensor:
    return model.log_share(torch.arange(len(model.last_row))).exp()


def _stream(shares: torch.Tensor, rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(shares, rows, replacement=True, generator=generator)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, _ITEMS - 1), max_size=12), max_size=6),
    st.sampled_from([0.05, 0.3, 0.9]),
)
def test_estimates_equal_a_slow_loop_over_rows(batches: list[list[int]], rate: float) -> None:
    model = StreamingFrequency(_ITEMS, rate=rate)
    for batch in batches:
        model.observe(torch.tensor(batch, dtype=torch.int32))

    expected = _slow([item for batch in batches for item in batch], rate)
    # Sums of some dozen numbers in float32.
    assert _shares(model).tolist() == pytest.approx(expected, rel=1e-5)
    assert int(model.clock) == sum(map(len, batches))


def test_two_gaps_known_answer() -> None:
    model = StreamingFrequency(4, rate=0.5)
    # Item 2 stands in rows 0, 1 and 4: gaps of 1 and 3 after one of 4 that is taken for granted.
    model.observe(torch.tensor([2, 2, 0]))
    model.observe(torch.tensor([1, 2]))

    # Weights 1/8, 1/4 and 1/2 of the gaps 4, 1 and 3.
    expected = (1 / 8 + 1 / 4 + 1 / 2) / (4 / 8 + 1 / 4 + 3 / 2)
    assert float(_shares(model)[2]) == pytest.approx(expected)
    assert float(_shares(model)[3]) == pytest.approx(1 / 4)


def test_first_gap_of_others_is_that_from_the_beginning() -> None:
    model = StreamingFrequency(4, 2, rate=0.5)
    # Item 5, one of two others, stands in rows 2 and 3.
    model.observe(torch.tensor([2, 0]))
    model.observe(torch.tensor([5, 5]))

    # Weights 1/4 and 1/2 of the gaps 3 and 1; of an item, one gap of 4 is taken for granted.
    expected = (1 / 4 + 1 / 2) / (3 / 4 + 1 / 2)
    assert float(_shares(model)[5]) == pytest.approx(expected)
    assert _shares(model)[[1, 2]].tolist() == pytest.approx([1 / 4] * 2)


def test_nothing_is_taken_for_granted_where_there_are_others_alone() -> None:
    model = StreamingFrequency(0, 2, rate=0.5)
    model.observe(torch.tensor([1]))
    assert float(_shares(model)[1]) == pytest.approx(1)
    model.observe(torch.tensor([1, 0, 1]))

    # Gaps of 1, 1 and 2 with weights 1/8, 1/4 and 1/2; and the one of 3 from the beginning.
    expected = (1 / 8 + 1 / 4 + 1 / 2) / (1 / 8 + 1 / 4 + 2 / 2)
    assert _shares(model).tolist() == pytest.approx([1 / 3, expected])


def test_other_that_has_not_come_counts_as_if_it_came_next() -> None:
    model = StreamingFrequency(2, 2, rate=0.5)
    assert _shares(model)[2:].tolist() == [1, 1]
    model.observe(torch.tensor([0, 1, 2]))
    before = float(_shares(model)[3])
    model.observe(torch.tensor([3]))

    assert before == pytest.approx(1 / 4)
    assert float(_shares(model)[3]) == pytest.approx(before)


def test_others_of_which_most_come_seldom_are_not_taken_to_be_in_every_row() -> None:
    model = StreamingFrequency(0, 2000)
    shares = torch.full((2000,), 1 / 2000)
    apart = []
    for batch in _stream(shares, 20_000, seed=0).split(500):
        model.observe(batch)
        apart.append(model.log_share(batch) - shares[batch].log())

    # First gaps are short ones, as they end in the stream. Taken to be in every row, items would
    # come 0.48 too high.
    assert torch.cat(apart).mean().item() < 0.35


def test_estimates_converge_to_the_true_shares() -> None:
    shares = 1.0 / torch.arange(1, 51)
    shares = shares / shares.sum()
    model = StreamingFrequency(50, rate=0.01)
    for batch in _stream(shares, 400_000, seed=0).split(1000):
        model.observe(batch)

    # The rarest item comes 1,800 times. A standard deviation is sqrt(0.01 / 2) = 0.07.
    apart = model.log_share(torch.arange(50)) - shares.log()
    assert apart.abs().max().item() < 5 * 0.07
    assert apart.square().mean().sqrt().item() == pytest.approx(0.07, rel=0.35)
    # Items that are in every batch have no common ceiling.
    assert float(_shares(model)[0]) == pytest.approx(2 * float(_shares(model)[1]), rel=0.5)


def test_estimates_follow_a_share_that_changes() -> None:
    before, after = torch.tensor([0.9, 0.1]), torch.tensor([0.2, 0.8])
    model = StreamingFrequency(2, rate=0.02)
    model.observe(_stream(before, 5000, seed=0))
    first = _shares(model)
    model.observe(_stream(after, 5000, seed=1))

    assert first.tolist() == pytest.approx([0.9, 0.1], rel=0.5)
    assert _shares(model).tolist() == pytest.approx([0.2, 0.8], rel=0.5)


def test_state_is_in_the_state_dict() -> None:
    first, second = (StreamingFrequency(_ITEMS) for _ in range(2))
    rows = _stream(torch.ones(_ITEMS), 60, seed=0)
    first.observe(rows[:30])
    second.load_state_dict(first.state_dict())
    for model in (first, second):
        model.observe(rows[30:])

    assert torch.equal(_shares(first), _shares(second))
    assert second.clock.item() == 60
