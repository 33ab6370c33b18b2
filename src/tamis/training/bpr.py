"""Bayesian personalised ranking of items by ids alone: the trainer of LightGCN."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from tamis.errors import ConfigError, DataError, DivergedError
from tamis.models.lightgcn import LightGCN


@dataclass(frozen=True, kw_only=True, slots=True)
class BPRConfig:
    """How LightGCN is trained; the defaults are the published ones."""

    lr: float = 1e-3
    """Step size of Adam. Above 0."""
    l2: float = 1e-4
    """Factor on half the squared norms of a row's three starting vectors. At least 0."""
    batch_size: int = 2048
    """Triples of a step. At least 1."""
    max_epochs: int = 1000
    """Epochs, each of as many triples as there are interactions. At least 1."""
    seed: int = 0
    """Decides which triples are drawn."""

    def __post_init__(self) -> None:
        if not self.lr > 0 or not self.l2 >= 0:
            raise ConfigError(
                f"bpr: lr must be above 0 and l2 at least 0, got lr={self.lr} and l2={self.l2}."
            )
        if self.batch_size < 1 or self.max_epochs < 1:
            raise ConfigError(
                f"bpr: batch_size and max_epochs must be at least 1, got {self.batch_size} and "
                f"{self.max_epochs}."
            )


class TripleSampler:
    """Draws users, an item of each, and an item that the user never touched.

    Users are uniform, and so is the item among the user's own and the other among all others.

    Source:
        Rendle et al., BPR: Bayesian Personalized Ranking from Implicit Feedback, UAI 2009; users
        are drawn as in the published code of LightGCN.

    Differs from the source:
        Rendle et al. draw interactions, so that active users count more.
    """

    def __init__(
        self,
        users: Int[Tensor, " N"],
        items: Int[Tensor, " N"],
        *,
        num_items: int,
        generator: torch.Generator,
    ) -> None:
        """Sort the interactions by user.

        Raises:
            DataError: There is no interaction, or a user touched every item, so that there is no
                other to draw.
        """
        if not len(users):
            raise DataError("bpr: there must be interactions to learn from, got none.")
        self._pairs = torch.unique(users.to(torch.int64) * num_items + items.to(torch.int64))
        owners = self._pairs // num_items
        # Users without an interaction have no triple.
        self._users, self._counts = torch.unique_consecutive(owners, return_counts=True)
        self._starts = self._counts.cumsum(0) - self._counts
        self._num_items, self._generator = num_items, generator
        if int(self._counts.max()) >= num_items:
            user = int(self._users[self._counts.argmax()])
            raise DataError(
                f"bpr: each user must leave an item untouched, got user {user} with all "
                f"{num_items}. Drop the user."
            )

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Users, their items, and others; ``(count,)`` each."""
        place = torch.randint(len(self._users), (count,), generator=self._generator)
        users, counts = self._users[place], self._counts[place]
        share = torch.rand(count, generator=self._generator, dtype=torch.float64)
        # A double below 1 times a count may round up to the count itself.
        offsets = torch.minimum((share * counts).long(), counts - 1)
        own = self._pairs[self._starts[place] + offsets] % self._num_items
        other = torch.randint(self._num_items, (count,), generator=self._generator)
        while True:
            again = self._is_known(users, other).nonzero().squeeze(1)
            if not len(again):
                return users, own, other
            other[again] = torch.randint(self._num_items, (len(again),), generator=self._generator)

    def _is_known(self, users: Tensor, items: Tensor) -> Tensor:
        keys = users * self._num_items + items
        found = torch.searchsorted(self._pairs, keys).clamp_max(len(self._pairs) - 1)
        is_known: Tensor = self._pairs[found] == keys
        return is_known


def bpr_loss(
    model: LightGCN,
    users: Int[Tensor, " B"],
    own: Int[Tensor, " B"],
    other: Int[Tensor, " B"],
    *,
    l2: float,
) -> Float[Tensor, ""]:
    """Mean of ``-log sigmoid(s(u, i) - s(u, j)) + l2 / 2 (|e_u|^2 + |e_i|^2 + |e_j|^2)``.

    Scores s are of the propagated vectors, the norms of those that they start from.

    Source:
        He et al., LightGCN, SIGIR 2020, equation (15).

    Differs from the source:
        The norms are those of the batch's rows, divided by the batch size, as in the published
        code; the equation has them of the whole table.
    """
    of_users, of_items = model()
    vectors = of_users[users]
    apart = (vectors * (of_items[other] - of_items[own])).sum(1)
    start, start_own = model.starts(users, own)
    start_other = model.starts(users, other)[1]
    norms = sum(rows.square().sum() for rows in (start, start_own, start_other))
    loss: Tensor = F.softplus(apart).mean() + l2 / 2 * norms / len(users)
    return loss


class BPRTraining:
    """A model in training, an epoch at a time; between two epochs it can be put away.

    What :meth:`state` gives, put back by :meth:`load_state` into a training of the same model,
    interactions and settings, goes on as if nothing had been between.
    """

    def __init__(
        self,
        model: LightGCN,
        users: Int[Tensor, " N"],
        items: Int[Tensor, " N"],
        config: BPRConfig,
    ) -> None:
        """Get ready for the first epoch.

        Args:
            model: On any device; what is drawn does not depend on it.
            users: User of each interaction that the model's graph was built from.
            items: Item of each interaction.
            config: Step size, regularisation and seed; its length is for the caller.

        Raises:
            DataError: A user touched every item.
        """
        self.epochs = 0
        self._model, self._config, self._triples = model, config, len(users)
        self._generator = torch.Generator().manual_seed(config.seed)
        self._sampler = TripleSampler(
            users.cpu(), items.cpu(), num_items=model.num_items, generator=self._generator
        )
        self._optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)

    def run_epoch(self) -> float:
        """Train on as many triples as there are interactions; their mean loss.

        Raises:
            DivergedError: The loss is no finite number.
        """
        losses = []
        device = self._model.weight.device
        triples = [part.to(device) for part in self._sampler.draw(self._triples)]
        for batch in zip(*(part.split(self._config.batch_size) for part in triples), strict=True):
            self._optimizer.zero_grad(set_to_none=True)
            loss = bpr_loss(self._model, *batch, l2=self._config.l2)
            loss.backward()
            self._optimizer.step()
            losses.append(loss.detach())
        self.epochs += 1
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise DivergedError(
                f"bpr epoch {self.epochs}: the loss must be finite, got {mean}. Lower lr."
            )
        return mean

    def state(self) -> dict[str, Tensor]:
        """Everything that training changes, by name."""
        moments = self._optimizer.state[self._model.weight]
        return {
            "weight": self._model.weight.detach().clone(),
            **{f"adam.{name}": value.clone() for name, value in moments.items()},
            "generator": self._generator.get_state(),
            "epochs": torch.tensor(self.epochs),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave."""
        with torch.no_grad():
            self._model.weight.copy_(state["weight"])
        moments = {
            name.removeprefix("adam."): value
            for name, value in state.items()
            if name.startswith("adam.")
        }
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": {0: moments}})
        self._generator.set_state(state["generator"])
        self.epochs = int(state["epochs"])


def train_bpr(
    model: LightGCN,
    users: Int[Tensor, " N"],
    items: Int[Tensor, " N"],
    config: BPRConfig,
    *,
    after_epoch: Callable[[int, float], bool] | None = None,
) -> None:
    """Train a model in place on the interactions that its graph was built from.

    Args:
        model: On any device; what is drawn does not depend on it.
        users: User of each interaction.
        items: Item of each interaction.
        config: Step size, regularisation and length.
        after_epoch: Called with the number of the epoch, from 1, and its mean loss; training stops
            where it says True. Choose by a validation split, never by the test.

    Raises:
        DataError: A user touched every item.
        DivergedError: The loss is no finite number.
    """
    training = BPRTraining(model, users, items, config)
    while training.epochs < config.max_epochs:
        loss = training.run_epoch()
        if after_epoch is not None and after_epoch(training.epochs, loss):
            return
