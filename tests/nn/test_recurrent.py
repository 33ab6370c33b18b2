"""Recurrent networks on jagged histories against PyTorch's unit and against a loop over rows."""

import pytest
import torch

from tamis.nn.recurrent import AttentionalGRU, JaggedGRU, steps_of
from tamis.nn.sequence import Events

_OFFSETS = torch.tensor([0, 0, 3, 4, 9, 9, 11])


def _events(*, width: int = 4) -> Events:
    torch.manual_seed(0)
    return Events(values=torch.randn(11, width, requires_grad=True), offsets=_OFFSETS)


def test_steps_are_prefixes_of_the_longest_histories_first() -> None:
    steps = steps_of(_events())

    assert steps.sizes == (4, 3, 2, 1, 1)
    assert steps.order[:4].tolist() == [3, 1, 5, 2]
    # First events of rows 3, 1, 5 and 2, then second events of the three that have one, and so on.
    assert steps.places.tolist() == [4, 0, 9, 3, 5, 1, 10, 6, 2, 7, 8]
    values = torch.arange(11.0).unsqueeze(1)
    back = steps.scattered(values[steps.places])
    assert torch.equal(back, values)


def test_states_and_gradients_are_those_of_pytorchs_unit() -> None:
    events = _events()
    gru = JaggedGRU(4)
    theirs = torch.nn.GRU(4, 4, batch_first=True)
    with torch.no_grad():
        for own in gru.parameters():
            own.add_(0.5 * torch.randn_like(own))
        # Theirs writes u h + (1 - u) n, so its update gate is one minus ours.
        for name, layer in (("ih", gru.read), ("hh", gru.keep)):
            reset, update, content = layer.weight.chunk(3)
            getattr(theirs, f"weight_{name}_l0").copy_(torch.cat([reset, -update, content]))
            reset, update, content = layer.bias.chunk(3)
            getattr(theirs, f"bias_{name}_l0").copy_(torch.cat([reset, -update, content]))
    found = gru(events, steps_of(events)).values
    bounds = list(zip(_OFFSETS[:-1].tolist(), _OFFSETS[1:].tolist(), strict=True))
    expected = torch.cat(
        [theirs(events.values[a:b].unsqueeze(0))[0].squeeze(0) for a, b in bounds if b > a]
    )

    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    (ours,) = torch.autograd.grad((found * weights).sum(), events.values)
    (other,) = torch.autograd.grad((expected * weights).sum(), events.values)
    torch.testing.assert_close(ours, other)


def test_attention_of_one_is_a_plain_unit_and_of_zero_keeps_the_state() -> None:
    events = _events()
    steps = steps_of(events)
    plain, attentional = JaggedGRU(4), AttentionalGRU(4)
    attentional.load_state_dict(plain.state_dict())
    last = attentional(events, torch.ones(11, 1), steps)
    ends = [3, 4, 9, 11]

    torch.testing.assert_close(
        last[[1, 2, 3, 5]], plain(events, steps).values[[end - 1 for end in ends]]
    )
    assert last[[0, 4]].tolist() == [[0.0] * 4] * 2
    assert attentional(events, torch.zeros(11, 1), steps).tolist() == [[0.0] * 4] * 6


@pytest.mark.parametrize("rows", [0, 3])
def test_no_events_at_all_are_zeros(rows: int) -> None:
    events = Events(values=torch.zeros(0, 4), offsets=torch.zeros(rows + 1, dtype=torch.int64))
    steps = steps_of(events)

    assert AttentionalGRU(4)(events, torch.zeros(0, 1), steps).shape == (rows, 4)
    assert JaggedGRU(4)(events, steps).values.shape == (0, 4)
