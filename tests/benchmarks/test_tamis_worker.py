import numpy as np
import pyarrow.parquet as pq
import synthetic
import tamis_worker

CONFIG = {
    "model": "dcn_v2",
    "embedding_dim": 8,
    "hidden_units": [16],
    "num_cross_layers": 2,
    "learning_rate": 0.002,
    "seed": 3,
    "batch_size": 256,
    "epochs": 2,
    "precision": "float32",
    "optimizer": {"embedding_lr": 0.02},
    "threads": 1,
    "label": synthetic.LABEL,
}


def small_log(folder):
    return synthetic.encoded_log(
        folder, table_rows=500, train_rows=2000, test_rows=400, num_fields=4
    )


def test_dataset_holds_the_peers_ids_and_declared_tables(tmp_path):
    log = small_log(tmp_path / "log")
    files = {split: str(path) for split, path in log.files.items()}
    dataset = tamis_worker.write_dataset(
        tmp_path / "out", files, log.rows_by_field, synthetic.LABEL
    )
    assert dataset.spec.num_rows_by_table == log.rows_by_field
    for split, path in log.files.items():
        table = pq.read_table(path)
        for name in log.rows_by_field:
            assert np.array_equal(dataset.split(split).ids(name), table[name].to_numpy())
        labels = dataset.split(split).labels()[:, 0]
        assert np.array_equal(labels, table[synthetic.LABEL].to_numpy())


def test_settings_carry_the_peers_sizes(tmp_path):
    settings = tamis_worker.settings_of(CONFIG)
    assert settings.model_name == "dcn_v2"
    assert settings.model.embedding_dim == 8
    assert settings.model.hidden_units == (16,)
    assert settings.model.num_cross_layers == 2
    assert settings.optimizer.dense_lr == 0.002
    assert settings.optimizer.embedding_lr == 0.02
    assert (settings.training.batch_size, settings.training.max_epochs) == (256, 2)
    # No early end: every contender trains as many epochs.
    assert settings.training.patience == 2


def test_training_waits_for_each_epoch_and_ends_with_test_metrics(tmp_path):
    log = small_log(tmp_path / "log")
    files = {split: str(path) for split, path in log.files.items()}
    training = tamis_worker._Training(
        {
            **CONFIG,
            "files": files,
            "rows_by_field": log.rows_by_field,
            "scratch": str(tmp_path / "scratch"),
        }
    )
    first = training.epoch()
    assert first["rows"] == 2000
    metrics = tmp_path / "scratch" / "run" / "metrics.jsonl"
    assert len(metrics.read_text().splitlines()) == 1
    second = training.epoch()
    assert len(metrics.read_text().splitlines()) == 2
    assert first["seconds"][0] > 0
    assert second["seconds"][0] > 0
    result = training.finish()
    assert 0 < result["auc"] < 1
    assert result["log_loss"] > log.oracle_log_loss
