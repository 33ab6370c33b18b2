"""DeepCTR-Torch's side of the benchmarks: runs inside its environment, with its own ``fit``.

Its DCN with matrix kernels is DCN-V2 beside a linear part that it always adds.
"""

import importlib.metadata
import sys
import time
import types
from typing import Any

import worker


def open_contender(config: worker.Config) -> worker.Commands:
    """Load the data into memory (its ``fit`` takes arrays) and build the model."""
    # On import the library starts a thread that asks the package index for a newer version.
    sys.modules["requests"] = types.ModuleType("requests")
    import torch

    torch.set_num_threads(config["threads"])
    return _Training(config).commands()


class _Training:
    """One model on one data set, trained epoch by epoch."""

    def __init__(self, config: worker.Config) -> None:
        import pyarrow.parquet as pq

        self.config = config
        self.names = list(config["rows_by_field"])
        self.model, self.stopwatch = build_model(config)
        self.inputs: dict[str, dict[str, Any]] = {}
        self.labels: dict[str, Any] = {}
        for split, path in config["files"].items():
            table = pq.read_table(path)
            self.inputs[split] = {name: table[name].to_numpy() for name in self.names}
            self.labels[split] = table[config["label"]].to_numpy()

    def commands(self) -> worker.Commands:
        return {
            "hello": lambda _: {
                "version": importlib.metadata.version("deepctr-torch"),
                "parameters": sum(p.numel() for p in self.model.parameters()),
                "preprocess_seconds": 0.0,
            },
            "epoch": lambda _: self.fit(),
            "evaluate": lambda message: self.evaluate(message["split"]),
        }

    def fit(self) -> worker.Answer:
        """One epoch of its ``fit``, without the concatenation of its inputs beforehand."""
        self.model.fit(
            dict(self.inputs["train"]),
            self.labels["train"],
            batch_size=self.config["batch_size"],
            epochs=1,
            verbose=0,
            callbacks=[self.stopwatch],
        )
        return {"seconds": [self.stopwatch.seconds[-1]], "rows": len(self.labels["train"])}

    def evaluate(self, split: str) -> worker.Answer:
        from sklearn.metrics import log_loss, roc_auc_score

        predictions = self.model.predict(dict(self.inputs[split]), batch_size=16_384)[:, 0]
        labels = self.labels[split]
        return {
            "auc": float(roc_auc_score(labels, predictions)),
            "log_loss": float(log_loss(labels, predictions)),
        }


def build_model(config: worker.Config) -> tuple[Any, Any]:
    """The model, compiled with Adam, and a callback that times its epochs."""
    import torch
    from deepctr_torch.callbacks import Callback
    from deepctr_torch.inputs import SparseFeat
    from deepctr_torch.models import DCN, DeepFM

    class Stopwatch(Callback):
        def __init__(self) -> None:
            super().__init__()
            self.seconds: list[float] = []

        def on_epoch_begin(self, *_: object, **__: object) -> None:
            self.started = time.perf_counter()

        def on_epoch_end(self, *_: object, **__: object) -> None:
            self.seconds.append(time.perf_counter() - self.started)

    columns = [
        SparseFeat(name, rows, embedding_dim=config["embedding_dim"])
        for name, rows in config["rows_by_field"].items()
    ]
    # No L2 for anyone: its own default walks every table once more each step.
    shared: dict[str, Any] = {
        "dnn_hidden_units": tuple(config["hidden_units"]),
        "dnn_dropout": config.get("dropout", 0.0),
        "dnn_use_bn": config.get("batch_norm", False),
        "l2_reg_linear": 0.0,
        "l2_reg_embedding": 0.0,
        "seed": config["seed"],
        "task": "binary",
        "device": "cpu",
    }
    if config["model"] == "deepfm":
        model = DeepFM(columns, columns, **shared)
    else:
        model = DCN(
            columns,
            columns,
            cross_num=config["num_cross_layers"],
            cross_parameterization="matrix",
            l2_reg_cross=0.0,
            **shared,
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=config["learning_rate"])
    model.compile(optimizer, "binary_crossentropy", metrics=[])
    return model, Stopwatch()


if __name__ == "__main__":
    worker.serve(open_contender)
