import pytest

from tamis.errors import ConfigError
from tamis.models import catalog


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("wukong", {"num_layers": 0}, "model.num_layers: must be at least 1, got 0"),
        ("wukong", {"rank": 0}, "model.rank: must be at least 1, got 0"),
        ("dhen", {"module_tokens": 0}, "model.module_tokens: must be at least 1, got 0"),
        ("dhen", {"num_dense_tokens": 0}, "model.num_dense_tokens: must be at least 1, got 0"),
        ("dhen", {"attention_heads": 0}, "model.attention_heads: must be at least 1, got 0"),
        ("autoint", {"num_heads": 0}, "model.num_heads: must be at least 1, got 0"),
        ("final_mlp", {"num_heads": 0}, "model.num_heads: must be at least 1, got 0"),
        ("fm", {"embedding_dim": 0}, "model.embedding_dim: must be at least 1, got 0"),
        ("dcn_v2", {"rank": -1}, "model.rank: must be at least 0, got -1"),
        ("deepfm", {"hidden_units": (8, 0)}, r"model.hidden_units: must be at least 1, got \(8, 0"),
        ("deepfm", {"dropout": 1.0}, r"model.dropout: must be in \[0, 1\), got 1.0"),
        ("deepfm", {"init_std": -0.1}, "model.init_std: must be at least 0, got -0.1"),
        ("deepfm", {"init_std": float("nan")}, "model.init_std: must be at least 0, got nan"),
        ("xdeepfm", {"cin_maps": ()}, "model.cin_maps: must hold a layer"),
        ("xdeepfm", {"cin_maps": (3, 4)}, r"even numbers where layers are split .* got \(3, 4\)"),
    ],
)
def test_numbers_out_of_range_are_refused(model: str, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        catalog.entry(model).config(**settings)


def test_a_zero_that_means_none_is_allowed() -> None:
    catalog.entry("dcn_v2").config(rank=0, num_experts=0)
    catalog.entry("xdeepfm").config(cin_maps=(3, 4), split_half=False)
