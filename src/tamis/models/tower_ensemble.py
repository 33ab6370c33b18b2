"""The ensembles that DHEN is not: separate towers, averaged or mixed by a gate at the very end."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec
from tamis.errors import ConfigError
from tamis.models.dhen import DHENConfig, dhen_layers
from tamis.models.output import Output
from tamis.models.ranges import check_ranges
from tamis.nn.embedding import DenseSideTokens
from tamis.nn.mlp import MLP, Activation, Norm
from tamis.nn.token_mixers import MixerName


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerEnsembleConfig:
    """Towers over shared embeddings."""

    embedding_dim: int = 16
    """Width d of a token. At least 1."""
    towers: tuple[tuple[MixerName, ...], ...] = (("dot",), ("linear",), ("dcn_v2",))
    """The modules of each tower's layers; one name each for independent single-module towers."""
    num_layers: int = 2
    """Layers of each tower. At least 1."""
    gate: Literal["mean", "softmax"] = "mean"
    """How towers are combined: all alike, or by weights that a linear gate reads off the tokens."""
    module_tokens: int = 8
    """Tokens that each module emits."""
    dot_units: int = 256
    """Hidden width of the dot module."""
    attention_units: int = 64
    """Width of the attention module's feed-forward layer."""
    num_dense_tokens: int = 1
    """Tokens that the numeric features become."""
    dense_units: tuple[int, ...] = (64,)
    """Hidden widths of the numeric side's MLP."""
    head_units: tuple[int, ...] = (128, 64)
    """Hidden widths of each tower's MLP."""
    head_norm: Norm = "none"
    """Before the activation of each hidden layer of the heads."""
    activation: Activation = "relu"
    """After each hidden layer of the heads."""
    dropout: float = 0.0
    """Probability of zeroing a hidden unit of a head while training, in [0, 1)."""
    init_std: float = 0.01
    """Standard deviation that embeddings start from."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.towers or not all(self.towers):
            raise ConfigError(f"model.towers: each must hold a module, got {self.towers}.")

    def tower(self, modules: tuple[MixerName, ...]) -> DHENConfig:
        """One tower as a stack of DHEN layers."""
        return DHENConfig(
            embedding_dim=self.embedding_dim,
            num_layers=self.num_layers,
            modules=modules,
            module_tokens=self.module_tokens,
            dot_units=self.dot_units,
            attention_units=self.attention_units,
        )


class TowerEnsemble(nn.Module):
    """Towers that meet in their logits only: ``sum_i g_i(X) logit_i(X)``.

    With ``mean`` every weight is 1/k: an average of independent networks. With ``softmax`` it is a
    dense mixture of experts. Modules of one tower never see another tower's output, which is what
    DHEN's layers add; these are the controls of its ablation.

    Source:
        DHEN, arXiv:2203.11014, section 3 (why a hierarchy is no parallel ensemble) and table of
        mixtures of experts; the gate is of Shazeer et al., Outrageously Large Neural Networks,
        ICLR 2017, equation (1), without noise and without sparsity.

    Differs from the source:
        The paper's experts are copies of an unpublished network; here each is a stack of any
        modules. Embeddings are shared, T tasks share everything but the output layers and the
        gate.
    """

    def __init__(self, config: TowerEnsembleConfig, spec: InputSpec) -> None:
        """Build the towers for the inputs of ``spec``."""
        super().__init__()
        self.tokens = DenseSideTokens(
            spec,
            config.embedding_dim,
            hidden_units=config.dense_units,
            num_dense_tokens=config.num_dense_tokens,
            init_std=config.init_std,
        )
        count = self.tokens.num_tokens
        self.towers = nn.ModuleList()
        for modules in config.towers:
            layers, out_tokens = dhen_layers(config.tower(modules), count)
            head = MLP(
                out_tokens * config.embedding_dim,
                config.head_units,
                out_dim=len(spec.tasks),
                makes_logits=True,
                activation=config.activation,
                dropout=config.dropout,
                norm=config.head_norm,
            )
            self.towers.append(nn.Sequential(layers, nn.Flatten(), head))
        is_gated = config.gate == "softmax"
        self.gate = nn.Linear(count * config.embedding_dim, len(self.towers)) if is_gated else None

    def forward(self, batch: Batch) -> Output:
        """Logits (B, T)."""
        tokens = self.tokens(batch)
        logits = torch.stack([tower(tokens) for tower in self.towers], dim=1)
        if self.gate is None:
            return Output(logits=logits.mean(1))
        weights = torch.softmax(self.gate(tokens.flatten(1)), dim=1)
        return Output(logits=(logits * weights.unsqueeze(2)).sum(1))
