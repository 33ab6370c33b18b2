# ruff: noqa: ANN401  (FuxiCTR's classes have no types)
"""FuxiCTR's side of the benchmarks: runs inside FuxiCTR's environment, with FuxiCTR's own parts.

Layers, feature processor, data loader and trainer are the wheel's, unchanged; only the model zoo is
not in the wheel, so the three models are put together here from its public layers. Ids that are
encoded already go in through a feature map with declared vocabulary sizes.
"""

import importlib.metadata
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import worker

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")


def open_contender(config: worker.Config) -> worker.Commands:
    """Start what ``config["task"]`` asks for: ``train`` or ``preprocess``."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    _start_ray(config["threads"])
    if config["task"] == "preprocess":
        return {"preprocess": lambda message: preprocess(config, message)}
    return _Training(config).commands()


def preprocess(config: worker.Config, message: dict[str, Any]) -> worker.Answer:
    """Fit the feature processor on a file and write it encoded.

    Args:
        config: ``columns`` and ``dtype`` of the inputs, ``label``, and the path of each split.
        message: ``out``, an empty folder.
    """
    from fuxictr.preprocess import FeatureProcessor, build_dataset

    out = Path(message["out"])
    started = time.perf_counter()
    encoder = FeatureProcessor(
        feature_cols=[
            {
                "name": config["columns"],
                "active": True,
                "dtype": config["dtype"],
                "type": "categorical",
            }
        ],
        label_col={"name": config["label"], "dtype": "float"},
        dataset_id="encoded",
        data_root=str(out),
    )
    paths = {f"{split}_data": path for split, path in config["files"].items()}
    build_dataset(
        encoder,
        **paths,
        data_format=Path(config["files"]["train"]).suffix[1:],
        min_categr_count=config.get("min_count", 1),
    )
    return {"seconds": time.perf_counter() - started}


class _Training:
    """One model on one data set, trained epoch by epoch."""

    def __init__(self, config: worker.Config) -> None:
        import torch
        from fuxictr.pytorch.dataloaders import RankDataLoader
        from fuxictr.pytorch.torch_utils import seed_everything

        torch.set_num_threads(config["threads"])
        seed_everything(config["seed"])
        self.config = config
        self.scratch = Path(config["scratch"])
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.preprocess_seconds = 0.0
        if "rows_by_field" in config:
            feature_map, files = self._declared(config["rows_by_field"]), config["files"]
        else:
            feature_map, files = self._fitted()
        self.model = build_model(feature_map, config, self.scratch)
        loader: dict[str, Any] = {
            "batch_size": config["batch_size"],
            "shuffle": True,
            "data_format": "parquet",
        }
        self.train_rows, self.valid_rows = RankDataLoader(
            feature_map,
            stage="train",
            train_data=files["train"],
            valid_data=files["valid"],
            **loader,
        )
        self.test_rows = RankDataLoader(
            feature_map, stage="test", test_data=files["test"], **loader
        )

    def commands(self) -> worker.Commands:
        return {
            "hello": lambda _: {
                "version": importlib.metadata.version("fuxictr"),
                "parameters": sum(p.numel() for p in self.model.parameters()),
                "preprocess_seconds": self.preprocess_seconds,
            },
            "epoch": lambda _: self.fit(epochs=1),
            "fit": lambda message: self.fit(epochs=message["epochs"]),
            "evaluate": lambda message: self.evaluate(message["split"]),
        }

    def fit(self, *, epochs: int) -> worker.Answer:
        """FuxiCTR's ``fit``; its validation at the end of each epoch is not counted."""
        before = len(self.model.epoch_seconds)
        self.model.fit(self.train_rows, epochs=epochs, validation_data=self.valid_rows)
        return {
            "seconds": self.model.epoch_seconds[before:],
            "rows": self.train_rows.num_samples,
        }

    def evaluate(self, split: str) -> worker.Answer:
        rows = {"valid": self.valid_rows, "test": self.test_rows}[split]
        metrics = self.model.evaluate(rows, metrics=["AUC", "logloss"])
        return {"auc": float(metrics["AUC"]), "log_loss": float(metrics["logloss"])}

    def _declared(self, rows_by_field: dict[str, int]) -> Any:
        from fuxictr.features import FeatureMap

        feature_map = FeatureMap("declared", str(self.scratch))
        feature_map.labels = [self.config["label"]]
        for name, rows in rows_by_field.items():
            feature_map.features[name] = {
                "source": "",
                "type": "categorical",
                "padding_idx": 0,
                "vocab_size": rows,
            }
        if self.config.get("history"):
            owner = list(rows_by_field)[-1]
            feature_map.features["history"] = {
                "source": "",
                "type": "sequence",
                "padding_idx": 0,
                "vocab_size": rows_by_field[owner],
                "max_len": self.config["history"],
                "share_embedding": owner,
            }
        feature_map.num_fields = feature_map.get_num_fields()
        feature_map.default_emb_dim = self.config["embedding_dim"]
        feature_map.set_column_index()
        return feature_map

    def _fitted(self) -> tuple[Any, dict[str, str]]:
        """Raw files through FuxiCTR's preprocessing; columns with ``separator`` are sequences."""
        from fuxictr.features import FeatureMap
        from fuxictr.preprocess import FeatureProcessor, build_dataset

        started = time.perf_counter()
        encoder = FeatureProcessor(
            feature_cols=[_column(item) for item in self.config["columns"]],
            label_col={"name": self.config["label"], "dtype": "float"},
            dataset_id="fitted",
            data_root=str(self.scratch),
        )
        paths = build_dataset(
            encoder,
            **{f"{split}_data": path for split, path in self.config["files"].items()},
            data_format="parquet",
            min_categr_count=1,
        )
        self.preprocess_seconds = time.perf_counter() - started
        feature_map = FeatureMap("fitted", str(self.scratch / "fitted"))
        feature_map.load(
            str(self.scratch / "fitted" / "feature_map.json"),
            {"embedding_dim": self.config["embedding_dim"]},
        )
        return feature_map, dict(zip(("train", "valid", "test"), paths, strict=True))


def _column(item: dict[str, str]) -> dict[str, Any]:
    column = {"name": item["name"], "active": True, "dtype": item["dtype"], "type": "categorical"}
    if "separator" in item:
        column |= {"type": "sequence", "splitter": item["separator"]}
    return column


def build_model(feature_map: Any, config: worker.Config, scratch: Path) -> Any:
    """A model from FuxiCTR's layers, compiled with Adam on its trainer.

    DIN and TransAct are put together as in FuxiCTR's model zoo.
    """
    import torch
    from fuxictr.pytorch import layers
    from fuxictr.pytorch.models import BaseModel
    from torch import nn

    width = config["embedding_dim"]
    flat = feature_map.num_fields * width

    def mlp(hidden_units: list[int], output_dim: int | None = None) -> nn.Module:
        return layers.MLP_Block(
            input_dim=flat,
            hidden_units=list(hidden_units),
            output_dim=output_dim,
            dropout_rates=config.get("dropout", 0.0),
            batch_norm=config.get("batch_norm", False),
        )

    class Timed(BaseModel):
        """The trainer with a stopwatch around its own methods."""

        def __init__(self) -> None:
            super().__init__(
                feature_map,
                model_id=config["model"],
                gpu=-1,
                monitor="AUC",
                monitor_mode="max",
                early_stop_patience=config.get("patience", 2),
                save_best_only=config.get("keep_best", False),
                embedding_regularizer=config.get("embedding_l2") or None,
                verbose=0,
                model_root=str(scratch),
                metrics=["AUC", "logloss"],
            )
            self.epoch_seconds: list[float] = []
            self._evaluation_seconds = 0.0
            os.makedirs(self.model_dir, exist_ok=True)

        def finish(self) -> None:
            self.compile("adam", "binary_crossentropy", config["learning_rate"])
            self.reset_parameters()
            self.model_to_device()

        def train_epoch(self, rows: Any) -> None:
            started, self._evaluation_seconds = time.perf_counter(), 0.0
            super().train_epoch(rows)
            self.epoch_seconds.append(time.perf_counter() - started - self._evaluation_seconds)

        def eval_step(self) -> None:
            started = time.perf_counter()
            super().eval_step()
            self._evaluation_seconds += time.perf_counter() - started

    class DeepFM(Timed):
        def __init__(self) -> None:
            super().__init__()
            self.embedding_layer = layers.FeatureEmbedding(feature_map, width)
            self.fm = layers.FactorizationMachine(feature_map)
            self.mlp = mlp(config["hidden_units"], output_dim=1)
            self.finish()

        def forward(self, inputs: Any) -> dict[str, Any]:
            features = self.get_inputs(inputs)
            tokens = self.embedding_layer(features)
            logits = self.fm(features, tokens) + self.mlp(tokens.flatten(start_dim=1))
            return {"y_pred": self.output_activation(logits)}

    class DCNv2(Timed):
        def __init__(self) -> None:
            super().__init__()
            self.embedding_layer = layers.FeatureEmbedding(feature_map, width)
            self.crossnet = layers.CrossNetV2(flat, config["num_cross_layers"])
            self.deep = mlp(config["hidden_units"])
            self.fc = nn.Linear(flat + config["hidden_units"][-1], 1)
            self.finish()

        def forward(self, inputs: Any) -> dict[str, Any]:
            x0 = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
            logits = self.fc(torch.cat([self.crossnet(x0), self.deep(x0)], dim=-1))
            return {"y_pred": self.output_activation(logits)}

    class FinalMLP(Timed):
        """Two MLPs on differently gated embeddings, fused by a bilinear form per head."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding_layer = layers.FeatureEmbedding(feature_map, width)
            first, second = config["first_units"], config["second_units"]
            self.first, self.second = mlp(first), mlp(second)
            self.contexts = nn.ModuleList()
            self.gates = nn.ModuleList()
            for fields in (config["first_context"], config["second_context"]):
                self.contexts.append(
                    layers.FeatureEmbedding(feature_map, width, required_feature_columns=fields)
                )
                self.gates.append(
                    layers.MLP_Block(
                        input_dim=width * len(fields),
                        output_dim=flat,
                        hidden_units=list(config["gate_units"]),
                        output_activation="Sigmoid",
                    )
                )
            heads = config["num_heads"]
            self.heads = (heads, first[-1] // heads, second[-1] // heads)
            self.linear_first = nn.Linear(first[-1], 1)
            self.linear_second = nn.Linear(second[-1], 1)
            self.pairs = nn.Parameter(torch.empty(first[-1] * second[-1] // heads, 1))
            nn.init.xavier_normal_(self.pairs)
            self.finish()

        def forward(self, inputs: Any) -> dict[str, Any]:
            features = self.get_inputs(inputs)
            x0 = self.embedding_layer(features, flatten_emb=True)
            gated = [
                x0 * 2 * gate(context(features, flatten_emb=True))
                for context, gate in zip(self.contexts, self.gates, strict=True)
            ]
            first, second = self.first(gated[0]), self.second(gated[1])
            heads, a, b = self.heads
            products = torch.einsum(
                "nha,hab,nhb->n",
                first.view(-1, heads, a),
                self.pairs.view(heads, a, b),
                second.view(-1, heads, b),
            )
            logits = self.linear_first(first) + self.linear_second(second) + products[:, None]
            return {"y_pred": self.output_activation(logits)}

    class DIN(Timed):
        def __init__(self) -> None:
            super().__init__()
            self.target = list(config["rows_by_field"])[-1]
            self.embedding_layer = layers.FeatureEmbeddingDict(feature_map, width)
            self.attention = layers.DIN_Attention(
                width,
                attention_units=list(config["attention_units"]),
                hidden_activations="Dice",
            )
            self.dnn = mlp(config["hidden_units"], output_dim=1)
            self.finish()

        def forward(self, inputs: Any) -> dict[str, Any]:
            features = self.get_inputs(inputs)
            vectors = self.embedding_layer(features)
            vectors["history"] = self.attention(
                vectors[self.target], vectors["history"], features["history"].long() != 0
            )
            flat_vectors = self.embedding_layer.dict2tensor(vectors, flatten_emb=True)
            return {"y_pred": self.output_activation(self.dnn(flat_vectors))}

    class TransAct(Timed):
        """Candidate beside every event, two layers, the maximum and the last ten outputs."""

        def __init__(self) -> None:
            super().__init__()
            self.target = list(config["rows_by_field"])[-1]
            self.embedding_layer = layers.FeatureEmbeddingDict(feature_map, width)
            layer = nn.TransformerEncoderLayer(
                2 * width, nhead=1, dim_feedforward=32, dropout=0.0, batch_first=True
            )
            self.encoder = nn.TransformerEncoder(layer, num_layers=2)
            self.recent = min(10, config["history"])
            merged = (len(config["rows_by_field"]) + 2 * (self.recent + 1)) * width
            self.crossnet = layers.CrossNetV2(merged, 2)
            self.dnn = layers.MLP_Block(
                input_dim=merged, hidden_units=list(config["hidden_units"]), output_dim=1
            )
            self.finish()

        def forward(self, inputs: Any) -> dict[str, Any]:
            features = self.get_inputs(inputs)
            vectors = self.embedding_layer(features)
            history = vectors.pop("history")
            padding = features["history"].long() == 0
            target = vectors[self.target].unsqueeze(1).expand_as(history)
            tokens = self.encoder(
                torch.cat([history, target], dim=-1), src_key_padding_mask=padding
            )
            largest = tokens.masked_fill(padding.unsqueeze(2), -1e9).max(dim=1).values
            recent = tokens[:, -self.recent :].flatten(start_dim=1)
            fields = self.embedding_layer.dict2tensor(vectors, flatten_emb=True)
            crossed = self.crossnet(torch.cat([fields, recent, largest], dim=-1))
            return {"y_pred": self.output_activation(self.dnn(crossed))}

    models = {
        "deepfm": DeepFM,
        "dcn_v2": DCNv2,
        "final_mlp": FinalMLP,
        "din": DIN,
        "transact": TransAct,
    }
    return models[config["model"]]()


def _start_ray(threads: int) -> None:
    """Ray as FuxiCTR's loader would start it, with the benchmark's cores and no dashboard."""
    import ray

    ray.init(
        num_cpus=max(2, threads),
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        object_store_memory=2 << 30,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
    )


if __name__ == "__main__":
    worker.serve(open_contender)
