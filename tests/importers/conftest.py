"""A folder of configs in the layout of FuxiCTR's model zoo and of BARS."""

from pathlib import Path

import pytest

_DATASETS = """
### Tiny data for demo only
tiny_seq:
    data_root: ../data/
    data_format: csv
    train_data: ../data/tiny/train.csv
    valid_data: ../data/tiny/valid.csv
    test_data: ../data/tiny/test.csv
    min_categr_count: 2
    feature_cols:
        - {name: day, active: True, dtype: str, type: meta}
        - {name: [adgroup_id, cate_id], active: True, dtype: str, type: categorical}
        - {name: brand, active: True, dtype: str, type: categorical, min_categr_count: 10,
           category_processor: hash_bucket, num_buckets: 100}
        - {name: pid, active: False, dtype: str, type: categorical}
        - {name: price, active: True, dtype: float, type: numeric, normalizer: StandardScaler}
        - {name: age, active: True, dtype: float, type: numeric}
        - {name: hour, active: True, dtype: str, type: categorical, preprocess: convert_hour}
        - {name: click_sequence, active: True, dtype: str, type: sequence, splitter: ^,
           max_len: 20, padding: pre, share_embedding: adgroup_id}
        - {name: cate_sequence, active: True, dtype: str, type: sequence, splitter: ^,
           max_len: 20, padding: pre, share_embedding: cate_id}
        - {name: group_id, active: True, dtype: str, type: meta, preprocess: copy_from(userid)}
    label_col: {name: clk, dtype: float}
npz:
    data_format: npz
    train_data: train.npz
"""
_BASE = """
Base:
    model_root: './checkpoints/'
    num_workers: 3
    verbose: 1
    early_stop_patience: 2
    pickle_feature_encoder: True
    save_best_only: True
    eval_steps: null
    group_id: group_id

"""
_COMMON = """
    dataset_id: tiny_seq
    loss: 'binary_crossentropy'
    metrics: ['logloss', 'AUC']
    task: binary_classification
    optimizer: adam
    learning_rate: 5.0e-4
    embedding_regularizer: 0.05
    net_regularizer: 0
    batch_size: 1024
    embedding_dim: 10
    dnn_activations: relu
    net_dropout: 0.2
    batch_norm: True
    epochs: 40
    shuffle: True
    seed: 2019
    monitor: {'AUC': 1, 'logloss': -1}
    monitor_mode: 'max'
"""
_OWN = {
    "DIN": (
        "dnn_hidden_units: [64, 32]\n    attention_hidden_units: [8]\n"
        "    attention_hidden_activations: Dice\n    attention_output_activation: null\n"
        "    attention_dropout: 0\n    din_use_softmax: True\n"
        "    din_target_field: [!!python/tuple [adgroup_id, cate_id]]\n"
        "    din_sequence_field: [!!python/tuple [click_sequence, cate_sequence]]\n"
    ),
    "DCNv2": (
        "model_structure: parallel\n    use_low_rank_mixture: False\n    low_rank: 32\n"
        "    num_experts: 4\n    stacked_dnn_hidden_units: [500, 500]\n"
        "    parallel_dnn_hidden_units: [400, 300]\n    num_cross_layers: 3\n"
    ),
    "FinalMLP": (
        "mlp1_hidden_units: [400]\n    mlp1_hidden_activations: relu\n    mlp1_dropout: 0.4\n"
        "    mlp1_batch_norm: True\n    mlp2_hidden_units: [800]\n    mlp2_dropout: 0.2\n"
        "    use_fs: True\n    num_heads: 10\n    fs1_context: [brand]\n    fs2_context: []\n"
    ),
    "DeepFM": "hidden_units: [300, 300]\n    hidden_activations: relu\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = tmp_path / "zoo" / "config"
    config.mkdir(parents=True)
    (config / "dataset_config.yaml").write_text(_DATASETS)
    experiments = [
        f"{name}_test:\n    model: {name}{_COMMON}    {own}" for name, own in _OWN.items()
    ]
    (config / "model_config.yaml").write_text(_BASE + "\n".join(experiments))
    (tmp_path / "data" / "tiny").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        (tmp_path / "data" / "tiny" / f"{split}.csv").write_text("clk,hour\n1,2\n")
    return config
