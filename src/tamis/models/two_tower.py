"""Two towers that meet in a dot product: the baseline of retrieval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tamis.data.batch import Batch, blank_batch
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.models.flops import counted_flops
from tamis.models.item_id import counted_places, hide_ids, place_of_id, places_of
from tamis.models.output import Output, Supervised
from tamis.models.ranges import check_probabilities, check_ranges
from tamis.nn.bridged_tower import Bridge, BridgedTower
from tamis.nn.frequency import StreamingFrequency
from tamis.nn.sampled_softmax import in_batch_softmax_loss
from tamis.nn.side_tokens import SideTokens
from tamis.retrieval.exact import Queries
from tamis.retrieval.search import weights_of_tasks

# Two numbers for each task must arrive as early as the towers do, from 0 to minus 4 where one row
# in fifty is positive; with an optimizer whose steps have one length they would take far longer.
_CALIBRATION_STRIDE = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoTowerConfig:
    """A user's tower, an item's tower, and how their dot product is learnt."""

    embedding_dim: int = 16
    """Width D of an embedding. At least 1."""
    tower_dim: int = 64
    """Width W of the vectors that meet."""
    user_layers: int = 1
    """Layers of the user tower."""
    item_layers: int = 1
    """Layers of the item tower."""
    attention_units: int = 16
    """Hidden width of the towers' attention over pairs of tokens."""
    bridge: Bridge = "attention"
    """How the two branches of a tower's layer are fused."""
    objective: Literal["softmax", "cross_entropy"] = "softmax"
    """What moves the towers: a softmax over the items of the batch, to which a teacher has nothing
    to say, or the cross entropy of each row's label."""
    log_q: bool = True
    """Whether the softmax is corrected for how often an item comes along; for ``softmax`` only."""
    frequency_rate: float = 0.05
    """Weight of the newest gap between two rows of an item, in (0, 1), in the estimate of how often
    it comes along: larger ones follow changes faster."""
    temperature: float = 0.1
    """What cosines are divided by at first, above 0, before what moves the towers; learnt from
    there, for each task."""
    id_dropout: float = 0.2
    """Probability of hiding an item's id while training, in [0, 1); where there is no content
    nothing is hidden."""
    init_std: float = 0.01
    """Standard deviation that embeddings start from."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.temperature > 0:
            raise ConfigError(f"model.temperature: must be above 0, got {self.temperature}.")
        if not 0 < self.frequency_rate < 1:
            raise ConfigError(
                f"model.frequency_rate: must be above 0 and below 1, got {self.frequency_rate}."
            )


class TwoTower(nn.Module):
    """``logit_t = s_t <u_t, v> + b_t``: a vector of the user for each task, one of the item.

    All vectors have unit length, and the towers are those of HSNN, on the same fields; fields of
    side ``context``, which tell of pairs, are not read, as a dot product has no place for them.

    With ``softmax``, the towers learn by the softmax of each task's positive rows over the items of
    the whole batch, at a learnt temperature. Items stand there as often as rows bring them, so each
    score is corrected by the logarithm of the item's share of rows, which the model counts while it
    trains. Scale and shift then calibrate the logits; their loss, the cross entropy with the
    labels, moves them alone. With ``cross_entropy`` that loss moves the towers, and there is no
    softmax.

    Mixed negatives: a row without any label is nobody's positive, but its item is everybody's
    negative. A log that holds such rows of items drawn uniformly from the corpus, beside the
    impressions, trains the mixture of in-batch and uniform negatives; the loader shuffles both into
    the same batches. As all rows are counted, the shares are those of the mixture.

    As a task's score is linear in the item's vector, a weighted sum of tasks is one dot product
    too: :meth:`queries` gives the user's vector of it.

    Source:
        Yi et al., Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations,
        RecSys 2019: towers, normalisation and temperature, in-batch softmax, correction; Yang et
        al., Mixed Negative Sampling for Learning Two-tower Neural Networks in Recommendations, WWW
        2020, section 4.2: uniform items beside those of the batch.

    Differs from the source:
        Towers are HSNN's (arXiv:2408.06653, two tower XS). Uniform items come as rows of the data,
        as the model has no corpus, and their number in a batch is random around its mean. Scale and
        shift, and tasks that share an item's vector, are ours. An item without a row in the id's
        table has zeros there, as ``id_dropout`` has trained it, and is counted by its content, as
        all items are where there is no id.
    """

    def __init__(self, config: TwoTowerConfig, spec: InputSpec) -> None:
        """Build the towers for the inputs of ``spec``.

        Raises:
            ConfigError: A task is no binary one, or user or item have no field.
        """
        super().__init__()
        check_probabilities(spec.tasks, why="Dot products are calibrated as probabilities.")
        self.config, self.spec = config, spec
        self.tokens = SideTokens(spec, config.embedding_dim, init_std=config.init_std)
        for side in ("user", "item"):
            if not self.tokens.num_tokens[side]:
                raise ConfigError(
                    f"model: some field must be of side {side!r}, got none. Set side in "
                    f"schema.toml."
                )
        self.place_of_id = place_of_id(spec)
        num_tasks = len(spec.tasks)
        self.user_tower = self._tower("user", config.user_layers, num_tasks)
        self.item_tower = self._tower("item", config.item_layers, 1)
        is_softmax = config.objective == "softmax"
        scale = 0.0 if is_softmax else -math.log(config.temperature) / _CALIBRATION_STRIDE
        self.log_scale = nn.Parameter(torch.full((num_tasks,), scale))
        self.shift = nn.Parameter(torch.zeros(num_tasks))
        self.log_temperature: nn.Parameter | None = None
        self.frequency: StreamingFrequency | None = None
        if is_softmax:
            start = torch.full((num_tasks,), math.log(config.temperature))
            self.log_temperature = nn.Parameter(start)
            if config.log_q:
                self.frequency = StreamingFrequency(
                    *places_of(spec, self.place_of_id), rate=config.frequency_rate
                )

    def forward(self, batch: Batch) -> Output:
        """Calibrated logits (B, T), and while training the softmax loss (T,) of each task."""
        users, items = self.encode_user(batch), self.encode_items(batch)
        cosines = (users * items.unsqueeze(1)).sum(2)
        if self.log_temperature is None:
            return Output(logits=self._logits(cosines))
        logits = self._logits(cosines.detach())
        losses: dict[str, Tensor] = {}
        if self.training:
            losses["softmax"] = self._softmax_losses(users, items, batch)
        # A teacher has nothing to say to a softmax, nor what calibrates its scores to the log.
        compared = Supervised(logits=logits, labels=batch.logged_labels)
        return Output(logits=logits, auxiliary_losses=losses, supervised=(compared,))

    # What serves the model: see tamis.retrieval.

    def encode_items(self, items: Batch, *, by_content: bool = False) -> Float[Tensor, "B W"]:
        """Item vectors of unit length; only the item side of the batch is read.

        Args:
            items: A row for each item.
            by_content: Whether ids are hidden, as for an item that no training has seen.
        """
        tokens = self.tokens(items, "item")
        dropout = self.config.id_dropout if self.training else 0.0
        tokens = hide_ids(tokens, items, self.place_of_id, dropout=dropout, by_content=by_content)
        return F.normalize(self.item_tower(tokens).squeeze(1), dim=1)

    def encode_user(self, users: Batch) -> Float[Tensor, "B T W"]:
        """A vector of unit length for each task; only the user side of the batch is read."""
        return F.normalize(self.user_tower(self.tokens(users, "user")), dim=2)

    def queries(self, task_weights: Sequence[float] = ()) -> Queries:
        """Vectors of users whose dot products with items are ``sum_t w_t logit_t`` less a constant.

        Args:
            task_weights: Weight w_t of each task; empty weighs them alike.

        Raises:
            ValueError: There is not one weight for each task.
        """
        weights = weights_of_tasks(task_weights, len(self.spec.tasks))

        def encode(users: Batch) -> Tensor:
            factors = self._scale * self.log_scale.new_tensor(weights)
            return (self.encode_user(users) * factors.unsqueeze(1)).sum(1)

        row = blank_batch(self.spec, 1, self.tokens.numeric_weight.device)
        with torch.inference_mode():
            flops, _ = counted_flops(lambda: encode(row))
        return Queries(encode=encode, flops=flops)

    def _logits(self, cosines: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        return cosines * self._scale + _CALIBRATION_STRIDE * self.shift

    @property
    def _scale(self) -> Float[Tensor, " T"]:
        return (_CALIBRATION_STRIDE * self.log_scale).exp()

    def _softmax_losses(self, users: Tensor, items: Tensor, batch: Batch) -> Float[Tensor, " T"]:
        assert self.log_temperature is not None
        log_share = items.new_zeros(len(items))
        if self.frequency is not None:
            places = counted_places(self.spec, batch, self.place_of_id)
            self.frequency.observe(places)
            log_share = self.frequency.log_share(places)
        rewards, temperatures = batch.rewards, self.log_temperature.exp()
        losses = [
            in_batch_softmax_loss(
                users[:, task],
                items,
                log_share,
                rewards=rewards[:, task],
                temperature=temperatures[task],
            )
            for task in range(users.shape[1])
        ]
        return torch.stack(losses)

    def _tower(
        self, side: Literal["user", "item"], num_layers: int, out_tokens: int
    ) -> BridgedTower:
        return BridgedTower(
            self.tokens.num_tokens[side],
            self.config.embedding_dim,
            num_layers=num_layers,
            out_tokens=out_tokens,
            out_dim=self.config.tower_dim,
            attention_units=self.config.attention_units,
            bridge=self.config.bridge,
        )
