"""InterFormer: fields and histories interact layer by layer, each at full size, by summaries."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.models.dhen import DHENConfig, dhen_layers
from tamis.models.output import Output
from tamis.models.ranges import check_ranges
from tamis.nn.attention import PoolingAttention, SequenceAttention
from tamis.nn.autocast import compiles_by_shape
from tamis.nn.dropout import Dropout
from tamis.nn.embedding import DenseSideTokens
from tamis.nn.interaction import CrossNet, DotInteraction
from tamis.nn.length_groups import LengthGroups
from tamis.nn.linear import linear
from tamis.nn.mlp import MLP, Norm
from tamis.nn.sequence import Events, EventVectors, last_events
from tamis.nn.token_mixers import MixerName, TokenMap

Gate = Literal["identity", "tanh", "sigmoid", "mask", "none"]
Personal = Literal["low_rank", "full", "mlp_low_rank", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class InterFormerConfig:
    """InterFormer; sizes of summaries and head are the published ones, widths fit a CPU."""

    embedding_dim: int = 16
    """Width d of a token. At least 1."""
    num_layers: int = 2
    """Layers L. At least 1."""
    flow: Literal["both", "to_fields", "to_events", "none", "sole"] = "both"
    """Which mode learns of the other before the head: both, the fields of the events (s2n), the
    events of the fields (n2s), or neither (sep). ``sole`` is the interaction alone: each column of
    a history is one more field, the mean of its events, and nothing else reads events."""
    summary_tokens: int = 4
    """Tokens that summarise the fields; they are the CLS tokens C of the sequence too."""
    class_tokens: bool = True
    """Whether the fields' first summary is put before the events; has an effect with a flow to the
    events."""
    pooled_tokens: int = 2
    """Learned queries P that read the sequence; 0 leaves pooling out."""
    recent_tokens: int = 2
    """Most recent events K of the summary; 0 leaves them out."""
    gate: Gate = "identity"
    """Gate of summaries Z: ``act(Z * MLP(Z))`` with the named activation, ``Z * sigmoid(MLP(Z))``
    for ``mask``, or none."""
    personal: Personal = "low_rank"
    """Matrix that each row's fields make for its events: of rank C as published, a full one from an
    MLP, a product of two thin ones from an MLP, or none. Without a flow to the events it is a plain
    linear map. A flow to the events needs it, or class tokens."""
    personal_rank: int = 4
    """Rank of ``mlp_low_rank``."""
    attention: bool = True
    """Whether events attend to each other."""
    num_heads: int = 2
    """Attention heads; divide ``embedding_dim`` into even parts."""
    rotary: bool = True
    """Whether attention between events knows their positions; has an effect with ``attention``."""
    backbone: Literal["dot", "dcn_v2", "dhen"] = "dhen"
    """How fields and summary interact within a layer."""
    backbone_layers: int = 1
    """Cross layers of ``dcn_v2``, layers of ``dhen``; 1 to 3 as published. ``dot`` has one step."""
    backbone_modules: tuple[MixerName, ...] = ("dot", "dcn_v2")
    """Modules of ``dhen``."""
    module_tokens: int = 8
    """Tokens that each module of ``dhen`` emits."""
    dot_units: int = 256
    """Hidden width of the dot module of ``dhen``."""
    cross_rank: int = 32
    """Rank of the cross layers of ``dcn_v2``."""
    cross_units: tuple[int, ...] = (512,)
    """Hidden widths of the MLP beside the cross layers of ``dcn_v2``."""
    restore_units: tuple[int, ...] = ()
    """Hidden widths of the MLP that turns a backbone's output into the fields' tokens."""
    style: Literal["pre_norm", "residual", "literal"] = "pre_norm"
    """Layers as residual blocks with layer norm before the update, as residual blocks without any
    norm (those of ``dhen`` included), or as the equations are written. A norm raises what is left
    of rare items' random start to the size of all else: where most items are rare and passes many,
    ``residual`` learns better; one pass from small embeddings needs the norm."""
    merge_single: bool = True
    """Whether a history of one column passes the merge of columns too."""
    merge_mask: Literal["none", "sigmoid"] = "none"
    """Activation of that merge's mask."""
    head_units: tuple[int, ...] = (1024, 512, 256, 128)
    """Hidden widths of the head."""
    head_norm: Norm = "none"
    """Before the activation of each hidden layer of the head."""
    dropout: float = 0.0
    """Probability of zeroing a unit of head or layer update while training, in [0, 1)."""
    init_std: float = 0.01
    """Standard deviation that embeddings start from."""

    def __post_init__(self) -> None:
        check_ranges(self, may_be_zero=("pooled_tokens", "recent_tokens"))
        if self.embedding_dim % self.num_heads:
            raise ConfigError(
                f"model.num_heads: must divide embedding_dim={self.embedding_dim}, got "
                f"{self.num_heads}."
            )
        turns = self.reads_events and self.attention and self.rotary
        if turns and (self.embedding_dim // self.num_heads) % 2:
            raise ConfigError(
                f"model.num_heads: must divide embedding_dim={self.embedding_dim} into even parts, "
                f"got {self.num_heads}. Rotary positions turn pairs; rotary = false needs none."
            )
        if self.events_see_fields and self.personal == "none" and not self.class_tokens:
            raise ConfigError(
                f"model.flow: must be 'to_fields' or 'none' with personal = 'none' and "
                f"class_tokens = false, got {self.flow!r}: nothing would bring the fields to the "
                f"events."
            )
        # Class tokens know of events what they attend to.
        sees_events = self.has_class_tokens and self.attention
        summarised = self.pooled_tokens or self.recent_tokens or sees_events
        if self.reads_events and not summarised:
            raise ConfigError(
                "model.pooled_tokens: must be at least 1 without recent tokens and without class "
                "tokens that attend to events, got 0: nothing would summarise the events."
            )

    @property
    def reads_events(self) -> bool:
        """Whether there is a Sequence Arch."""
        return self.flow != "sole"

    @property
    def has_class_tokens(self) -> bool:
        """Whether class tokens stand before the events."""
        return self.class_tokens and self.events_see_fields

    @property
    def fields_see_events(self) -> bool:
        """Whether layers hand summaries of the events to the fields."""
        return self.flow in ("both", "to_fields")

    @property
    def events_see_fields(self) -> bool:
        """Whether layers hand summaries of the fields to the events."""
        return self.flow in ("both", "to_events")


class InterFormer(nn.Module):
    """Tokens of fields X (B, n, d) and of events S (B, C + T, d), side by side through L layers.

    A layer first summarises both: X by a map over its tokens, S by its class tokens, P learned
    queries and its K last events, all gated. Then, in parallel, fields interact with the summary of
    the events, and the events pass a d x d matrix that the summary of the fields makes for each row
    and attend to each other. The head reads the summaries of the last layer's output.

    Source:
        Zeng et al., InterFormer, arXiv:2411.09852, equations (4) to (9), algorithm 1, appendix A.2.

    Differs from the source:
        Layers are pre-norm residual blocks by default: ``X + Interaction(LN(X), .)`` and
        ``S + MHA(LN(PFFN(., S)))``; the equations have neither norm nor residual. Without norms
        (``style = "residual"``) an event passes two blocks, ``S' = S + PFFN(., S)`` and
        ``S' + MHA(S')``: of small events the PFFN makes far smaller ones, and attention would see
        nothing else. The last summaries are made after the last update; by the formula as written
        the last layer would get no gradient. Not published: the number of layers, the depth of f
        (linear here), the gate's activation, the width of the map that restores the fields' tokens,
        how weights start (biases of gates from 1, but from 0 with ``gate = "mask"``), what stands
        for the missing ones of K events where a history is shorter (zeros, which the gate's sigmoid
        makes 0.5; the newest event comes first), and how histories of different events are aligned
        and merged (see ``EventVectors``). The paper has Swish everywhere; here the products of
        ``dhen`` and the hidden layer of the personal map of low rank by an MLP have ReLU. The
        paper's DCN-V2 baseline has an MLP of 500 on its cross layers, the backbone ``dcn_v2`` none:
        ``restore_units`` is empty by default, and reads the MLP beside them too.

        Parameters outside tables, at the published sizes (C = 4, P = K = 2, this head), over those
        of the paper's table 3 less its tables, for 1, 2 and 3 layers: AmazonElectronics 0.73, 0.96,
        1.19 (of 3.10 million); TaobaoAds 0.66, 0.99, 1.31 (3.29); KuaiVideo 0.99, 1.34, 1.69
        (2.50). So some depth is within 5 % of each, but not the three layers that the paper's text
        names on TaobaoAds: there 60 % of a layer of ours is the full 800 x 800 matrix of the cross
        module of ``dhen``. At rank 32, which the paper gives to its DCN-V2 alone, three layers
        would have 0.78 times the parameters.
    """

    def __init__(self, config: InterFormerConfig, spec: InputSpec) -> None:
        """Build the network for the inputs of ``spec``.

        Raises:
            ConfigError: ``spec`` has nothing but sequences, and these are read event by event.
        """
        super().__init__()
        width = config.embedding_dim
        self.config = config
        self.tokens = DenseSideTokens(
            spec,
            width,
            hidden_units=(),
            num_dense_tokens=1,
            pool_sequences=not config.reads_events,
            init_std=config.init_std,
        )
        if not self.tokens.num_tokens:
            raise ConfigError(
                "model.name: 'interformer' needs a field beside the sequences, got none. Declare "
                "the candidate item as a categorical field."
            )
        self.events: EventVectors | None = None
        if spec.sequences and config.reads_events:
            self.events = EventVectors(
                spec, width, merge_single=config.merge_single, mask_activation=config.merge_mask
            )
        count = self.tokens.num_tokens
        self.layers = nn.ModuleList(
            _Layer(config, count, is_first=place == 0) for place in range(config.num_layers)
        )
        self.field_summary = _FieldSummary(config, count)
        self.event_summary = _EventSummary(config) if config.reads_events else None
        of_events = self.event_summary.num_tokens if self.event_summary is not None else 0
        self.head = MLP(
            (config.summary_tokens + of_events) * width,
            config.head_units,
            out_dim=len(spec.tasks),
            makes_logits=True,
            activation="silu",
            norm=config.head_norm,
            dropout=config.dropout,
        )

    def forward(self, batch: Batch) -> Output:
        """Logits (B, T)."""
        x = self.tokens(batch)
        if self.event_summary is None:
            for layer in self.layers:
                assert isinstance(layer, _Layer)
                x = layer.interact(x, None)
            return Output(logits=self.head(self.field_summary(x).flatten(1)))
        events = self._events(batch, like=x)
        # The rows in the order of their histories' lengths from here to the logits.
        groups = LengthGroups(events.offsets, events.values.shape[0])
        x = x.index_select(0, groups.order)
        s, valid = groups.pad(events.values), groups.valid
        for place, layer in enumerate(self.layers):
            assert isinstance(layer, _Layer)
            of_fields: list[Tensor] | None = None
            if layer.field_summary is not None:
                of_fields = list(layer.field_summary(x).split(groups.sizes))
                if place == 0 and self.config.has_class_tokens:
                    s = [torch.cat(both, dim=1) for both in zip(of_fields, s, strict=True)]
                    tokens = self.config.summary_tokens
                    valid = [F.pad(mask, (tokens, 0), value=True) for mask in valid]
            of_events = None
            if layer.event_summary is not None:
                of_events = layer.event_summary(s, valid)
            assert layer.sequence is not None
            # Both from the same layer's inputs, so that they may run at the same time.
            x, s = layer.interact(x, of_events), layer.sequence(s, of_fields, valid)
        summaries = [self.field_summary(x), self.event_summary(s, valid)]
        logits = self.head(torch.cat(summaries, dim=1).flatten(1))
        return Output(logits=logits.index_select(0, groups.restored))

    def _events(self, batch: Batch, *, like: Tensor) -> Events:
        """Merged events; none without any sequence."""
        if self.events is None:
            offsets = torch.zeros(like.shape[0] + 1, dtype=torch.int64, device=like.device)
            return Events(values=like.new_zeros((0, like.shape[2])), offsets=offsets)
        return self.events(batch, self.tokens.tables)


class _Layer(nn.Module):
    """Summaries where the flow needs them, Interaction Arch and Sequence Arch."""

    def __init__(self, config: InterFormerConfig, num_fields: int, *, is_first: bool) -> None:
        super().__init__()
        self.field_summary: _FieldSummary | None = None
        self.event_summary: _EventSummary | None = None
        makes_class_tokens = is_first and config.has_class_tokens
        if makes_class_tokens or (config.events_see_fields and config.personal != "none"):
            self.field_summary = _FieldSummary(config, num_fields)
        if config.fields_see_events:
            self.event_summary = _EventSummary(config)
        summary = self.event_summary.num_tokens if self.event_summary is not None else 0
        self.interaction = _Interaction(config, num_fields, num_fields + summary)
        self.sequence = _SequenceArch(config) if config.reads_events else None
        self.is_residual = config.style != "literal"
        pre_norm = config.style == "pre_norm"
        self.norm = nn.LayerNorm(config.embedding_dim) if pre_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)

    def interact(
        self, x: Float[Tensor, "B N D"], of_events: Float[Tensor, "B M D"] | None
    ) -> Float[Tensor, "B N D"]:
        """Interaction Arch, equation (7)."""
        tokens = self.norm(x)
        if of_events is not None:
            tokens = torch.cat([tokens, of_events], dim=1)
        update = self.dropout(self.interaction(tokens))
        return x + update if self.is_residual else update


class _SequenceArch(nn.Module):
    """Equations (8) and (9), group by group of rows."""

    def __init__(self, config: InterFormerConfig) -> None:
        super().__init__()
        width = config.embedding_dim
        self.personal = _Personal(config)
        self.attention = (
            SequenceAttention(width, config.num_heads, rotary=config.rotary)
            if config.attention
            else nn.Identity()
        )
        self.has_attention = config.attention
        self.style = config.style
        self.norm = nn.LayerNorm(width) if config.style == "pre_norm" else nn.Identity()
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        s: Sequence[Float[Tensor, "B L D"]],
        of_fields: Sequence[Float[Tensor, "B C D"]] | None,
        valid: Sequence[Bool[Tensor, "B L"]],
    ) -> list[Tensor]:
        fields = of_fields if of_fields is not None else [None] * len(s)
        return [self._attend(*group) for group in zip(s, fields, valid, strict=True)]

    def _attend(
        self,
        s: Float[Tensor, "B L D"],
        of_fields: Float[Tensor, "B C D"] | None,
        valid: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B L D"]:
        made = self.personal(s, of_fields)
        if self.style == "residual":
            if self.personal.kind != "none":
                s = s + self.dropout(made)
            return s + self.dropout(self.attention(s, valid)) if self.has_attention else s
        update = self.norm(made)
        if self.has_attention:
            update = self.attention(update, valid)
        update = self.dropout(update)
        return update if self.style == "literal" else s + update


class _Gate(nn.Module):
    """``act(Z * MLP(Z))`` per token, or ``Z * sigmoid(MLP(Z))``."""

    def __init__(self, kind: Gate, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.map = MLP(width, (), out_dim=width) if kind != "none" else None
        if self.map is not None and kind != "mask":
            # The product starts as Z itself: two factors of its size would vanish together.
            last = self.map.layers[-1]
            assert isinstance(last, nn.Linear)
            nn.init.ones_(last.bias)

    def forward(self, z: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        if self.map is None:
            return z
        if self.kind == "mask":
            return z * self.map(z).sigmoid()
        gated = z * self.map(z)
        return {"identity": lambda v: v, "tanh": torch.tanh, "sigmoid": torch.sigmoid}[self.kind](
            gated
        )


class _FieldSummary(nn.Module):
    """C gated mixtures of the fields' tokens."""

    def __init__(self, config: InterFormerConfig, num_fields: int) -> None:
        super().__init__()
        self.map = TokenMap(num_fields, config.summary_tokens)
        self.gate = _Gate(config.gate, config.embedding_dim)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B C D"]:
        return self.gate(self.map(x))


class _EventSummary(nn.Module):
    """Gated class tokens, pooled tokens and recent events."""

    def __init__(self, config: InterFormerConfig) -> None:
        super().__init__()
        self.num_class = config.summary_tokens if config.has_class_tokens else 0
        self.num_recent = config.recent_tokens
        self.pool: PoolingAttention | None = None
        if config.pooled_tokens:
            self.pool = PoolingAttention(
                config.embedding_dim, config.pooled_tokens, config.num_heads
            )
        self.gate = _Gate(config.gate, config.embedding_dim)
        self.num_tokens = self.num_class + config.pooled_tokens + config.recent_tokens

    def forward(
        self, s: Sequence[Float[Tensor, "B L D"]], valid: Sequence[Bool[Tensor, "B L"]]
    ) -> Float[Tensor, "B M D"]:
        """Those of all groups, one group's rows after the other's."""
        return self.gate(torch.cat([self._read(*group) for group in zip(s, valid, strict=True)]))

    def _read(
        self, s: Float[Tensor, "B L D"], valid: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B M D"]:
        parts = [s[:, : self.num_class]]
        if self.pool is not None:
            parts.append(self.pool(s, valid).to(s.dtype))
        if self.num_recent:
            lengths = valid.sum(1) - self.num_class
            parts.append(last_events(s, lengths, self.num_recent, first=self.num_class))
        return torch.cat(parts, dim=1)


class _Interaction(nn.Module):
    """A backbone over all tokens, and an MLP that restores the fields' tokens."""

    def __init__(self, config: InterFormerConfig, num_fields: int, num_tokens: int) -> None:
        super().__init__()
        width = config.embedding_dim
        flat = num_tokens * width
        self.num_fields, self.kind = num_fields, config.backbone
        self.dot = self.cross = self.deep = self.dhen = None
        if config.backbone == "dot":
            self.dot = DotInteraction(num_tokens, with_diagonal=num_tokens == 1)
            out_dim = self.dot.out_dim
        elif config.backbone == "dcn_v2":
            self.cross = CrossNet(flat, config.backbone_layers, rank=config.cross_rank)
            self.deep = MLP(flat, config.cross_units, activation="silu")
            out_dim = flat + self.deep.out_dim
        else:
            layers = DHENConfig(
                embedding_dim=width,
                num_layers=config.backbone_layers,
                modules=config.backbone_modules,
                module_tokens=config.module_tokens,
                dot_units=config.dot_units,
                norm=config.style != "residual",
            )
            self.dhen, tokens = dhen_layers(layers, num_tokens)
            out_dim = tokens * width
        self.restore = MLP(
            out_dim, config.restore_units, out_dim=num_fields * width, activation="silu"
        )

    def forward(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B N D"]:
        flat = tokens.flatten(1)
        if self.dot is not None:
            mixed = self.dot(tokens)
        elif self.cross is not None and self.deep is not None:
            crossed, deep = self.cross(flat), self.deep(flat)
            mixed = torch.cat([crossed, deep.to(crossed.dtype)], dim=1)
        else:
            assert self.dhen is not None
            mixed = self.dhen(tokens).flatten(1)
        return self.restore(mixed).unflatten(1, (self.num_fields, -1))


class _Personal(nn.Module):
    """The personalised feed-forward network: a d x d matrix per row, for all of its events.

    ``low_rank`` is appendix A.2.2: the matrix is ``X_sum W`` of rank C, so an event s becomes
    ``X_sum (W s)`` and the matrix itself is never made.
    """

    def __init__(self, config: InterFormerConfig) -> None:
        super().__init__()
        width, count = config.embedding_dim, config.summary_tokens
        self.kind = config.personal if config.events_see_fields else "plain"
        flat = width * count
        if config.personal == "none":
            self.kind = "none"
        elif self.kind == "plain":
            self.map = MLP(width, (), out_dim=width)
        elif self.kind == "low_rank":
            self.weight = nn.Parameter(torch.empty(count, width))
            nn.init.xavier_uniform_(self.weight)
        elif self.kind == "full":
            self.map = MLP(flat, (), out_dim=width * width)
        else:
            self.map = MLP(flat, (flat,), out_dim=2 * width * config.personal_rank)
        self.rank = config.personal_rank

    def forward(
        self, s: Float[Tensor, "B L D"], of_fields: Float[Tensor, "B C D"] | None
    ) -> Float[Tensor, "B L D"]:
        if self.kind == "none":
            return s
        if self.kind == "plain":
            return self.map(s)
        assert of_fields is not None
        if self.kind == "low_rank":
            return _in_turn(linear(s, self.weight), [of_fields])
        made = self.map(of_fields.flatten(1))
        if self.kind == "full":
            return _in_turn(s, [made.unflatten(1, (s.shape[2], s.shape[2])).transpose(1, 2)])
        down, up = made.unflatten(1, (2, s.shape[2], self.rank)).unbind(1)
        return _in_turn(s, [down, up.transpose(1, 2)])


def _in_turn(
    s: Float[Tensor, "B L _"], matrices: Sequence[Float[Tensor, "B _ _"]]
) -> Float[Tensor, "B L _"]:
    """``s`` times one matrix after the other, which every row has for itself.

    In float32 under autocast on a CPU: their shapes change from batch to batch, as in
    ``nn.linear``, and they are small.
    """
    if compiles_by_shape(s):
        with torch.autocast("cpu", enabled=False):
            return _in_turn(s.float(), matrices)
    for matrix in matrices:
        s = torch.bmm(s, matrix.to(s.dtype))
    return s
