"""LightGCN as a row: trained on who went for what, and known by the vectors that it ends with.

Its run is a folder of its own kind, as the catalog's trainer asks for models of rows:

run.json               dataset, commit, environment; at the end epochs, sizes and speed
checkpoint.safetensors what training needs to go on, written after every evaluation
vectors.safetensors    vectors of users and items, and codes of the users; written last
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from tamis import artifacts, config
from tamis.data.columns import as_codes
from tamis.data.dataset import Dataset
from tamis.data.retrieval_task import StoredTask
from tamis.errors import ConfigError, DataError
from tamis.evaluation.retrieval import ItemLists, full_corpus_scores
from tamis.models.lightgcn import LightGCN, LightGCNConfig
from tamis.models.weights import load_tensors, save_tensors
from tamis.retrieval.collect import NOTHING
from tamis.retrieval.exact import exact_top_k
from tamis.retrieval.item_vectors import ItemVectors
from tamis.training import runlog
from tamis.training.bpr import BPRConfig, BPRTraining
from tamis.training.predict import choose_device
from tamis.training.run_folder import begin_work, timestamp, update_run_json

RUN, CHECKPOINT, VECTORS = "run.json", "checkpoint.safetensors", "vectors.safetensors"
_IN_CORPUS = "each positive must be of an item of the corpus"
_TRAINED = "each user who asks must have a positive in the training split"
_RECALL_AT = 20
"""Length of the lists that decide where training stops, that of published figures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopping:
    """When a training ends before its last epoch; what is kept is its best evaluation."""

    evaluate_every: int
    """Epochs from one evaluation on the validation users to the next. At least 1."""
    patience: int
    """Evaluations in a row that are not better than the best one before them, after which it ends.
    At least 1."""

    def __post_init__(self) -> None:
        if self.evaluate_every < 1 or self.patience < 1:
            raise ConfigError(
                f"evaluate_every and patience must be at least 1, got {self.evaluate_every} and "
                f"{self.patience}."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class LightGCNRecipe:
    """What ``recipes/<folder>/lightgcn.toml`` holds; the seed is that of the row."""

    model: LightGCNConfig
    """Sizes."""
    training: BPRConfig
    """Step size, regularisation and epochs at most."""
    stopping: Stopping
    """When it ends before them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interactions:
    """Who went for what, in numbers: U users by ascending code, V items by the corpus."""

    user_codes: NDArray[np.int64]
    """(U,) of the users who went for something in the training split."""
    num_items: int
    """V."""
    trained: ItemLists
    """What each went for in the training split, which no list may hold."""
    validation: ItemLists
    """What each went for in the validation split and not before."""

    @classmethod
    def read(cls, dataset: Dataset, task: StoredTask) -> "Interactions":
        """Read the positives of a dataset.

        Args:
            dataset: With the splits ``train`` and ``valid``, and who and what each row is of.
            task: A task on the same rows; its corpus numbers the items.

        Raises:
            DataError: Rows do not tell user and item, or an item is not in the corpus.
        """
        users, items = _positives(dataset, "train")
        corpus = _codes_of(task.corpus, task.schema.roles.item)
        user_codes, owners = np.unique(users, return_inverse=True)
        num_users, num_items = len(user_codes), len(corpus)
        keys = np.unique(owners * num_items + _places(corpus, items, _IN_CORPUS))
        users, items = _positives(dataset, "valid")
        is_known = np.isin(users, user_codes)
        owners = np.searchsorted(user_codes, users[is_known])
        later = np.unique(owners * num_items + _places(corpus, items[is_known], _IN_CORPUS))
        # What somebody returns to is masked, and so cannot be found.
        trained, validation = (
            ItemLists.of_pairs(*np.divmod(pairs, num_items), num_users=num_users)
            for pairs in (keys, np.setdiff1d(later, keys, assume_unique=True))
        )
        return cls(
            user_codes=user_codes, num_items=num_items, trained=trained, validation=validation
        )


def train_lightgcn(
    dataset: Dataset,
    task: StoredTask,
    recipe: Path,
    run: Path,
    *,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Train LightGCN on the positives of the training split, or go on from its last evaluation.

    Args:
        dataset: With the splits ``train`` and ``valid``.
        task: A task on the same rows; its corpus numbers the items.
        recipe: File that :class:`LightGCNRecipe` is read from.
        run: Folder of the run; a finished one stays as it is.
        seed: Of the first vectors and of what is drawn.
        say: Told how it goes.

    Raises:
        ConfigError: The recipe holds something else.
        DataError: Rows do not tell user and item, or nobody has anything to find on validation.
        RunInUseError: A living process works on this folder.
        ArtifactError: A checkpoint is damaged.
        DivergedError: The loss is no finite number.
    """
    settings = config.from_table(LightGCNRecipe, config.read_toml(recipe))
    with artifacts.folder_lock(run):
        if (run / VECTORS).exists():
            return
        known = Interactions.read(dataset, task)
        if not (run / RUN).exists():
            identity = {
                "dataset": {"fingerprint": dataset.fingerprint},
                "commit": runlog.source_commit(),
                "seed": seed,
            }
            artifacts.write_json(run / RUN, identity)
        device = choose_device("auto")
        for message in begin_work(run, device):
            say(message)
        _Training(known, settings, run, seed, device).work(say)


def vectors_of(run: Path, task: StoredTask) -> tuple[Tensor, ItemVectors]:
    """Vectors (U, D) of the users who ask, in their order, and of all items.

    Raises:
        ArtifactError: The run is not finished.
        DataError: Somebody asks who went for nothing in the training split.
    """
    tensors = load_tensors(run / VECTORS)
    asking = _codes_of(task.requests, task.schema.roles.user)
    places = torch.from_numpy(_places(tensors["user_codes"].numpy(), asking, _TRAINED))
    items = tensors["items"]
    return tensors["users"][places], ItemVectors.of(torch.arange(len(items)), items)


class _Training:
    """One process's work on one run."""

    def __init__(
        self,
        known: Interactions,
        settings: LightGCNRecipe,
        run: Path,
        seed: int,
        device: torch.device,
    ) -> None:
        self._known, self._stopping, self._run = known, settings.stopping, run
        self._max_epochs = settings.training.max_epochs
        users, items = (
            torch.from_numpy(part) for part in (known.trained.owners, known.trained.ids)
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = LightGCN(
                settings.model,
                users,
                items,
                num_users=len(known.user_codes),
                num_items=known.num_items,
            )
        self._model = model.to(device)
        self._masked = (users.to(device), items.to(device))
        self._training = BPRTraining(
            self._model, users, items, replace(settings.training, seed=seed)
        )
        self._best, self._recalls, self._seconds = model.weight.detach().clone(), list[float](), 0.0

    def work(self, say: Callable[[str], None]) -> None:
        training = self._training
        if (self._run / CHECKPOINT).exists():
            self._go_on(say)
        while training.epochs < self._max_epochs and not self._is_over():
            started = time.perf_counter()
            loss = training.run_epoch()
            self._seconds += time.perf_counter() - started
            is_last = training.epochs == self._max_epochs
            if training.epochs % self._stopping.evaluate_every and not is_last:
                continue
            self._recalls.append(self._recall())
            if self._best_place() == len(self._recalls) - 1:
                self._best = self._model.weight.detach().clone()
            self._put_away()
            say(
                f"epoch {training.epochs}: loss {loss:.4f}, recall@{_RECALL_AT} "
                f"{self._recalls[-1]:.4f} of validation users"
            )
        self._finish()

    def _recall(self) -> float:
        known = self._known
        with torch.no_grad():
            users, items = self._model()
            best, found = exact_top_k(users, items, _RECALL_AT, masked=self._masked)
        scores = full_corpus_scores(
            found.masked_fill(best == -torch.inf, NOTHING).cpu().numpy(),
            known.validation,
            known.trained,
            num_items=known.num_items,
            candidates=known.num_items - known.trained.lengths,
            cutoffs=(_RECALL_AT,),
        )
        return scores.means()[f"recall@{_RECALL_AT}"]

    def _best_place(self) -> int:
        return int(np.argmax(self._recalls))

    def _is_over(self) -> bool:
        stale = len(self._recalls) - 1 - self._best_place() if self._recalls else 0
        return stale >= self._stopping.patience

    def _put_away(self) -> None:
        tensors = {f"training.{name}": value for name, value in self._training.state().items()}
        tensors["best"] = self._best
        tensors["recalls"] = torch.tensor(self._recalls, dtype=torch.float64)
        tensors["seconds"] = torch.tensor(self._seconds, dtype=torch.float64)
        save_tensors(self._run / CHECKPOINT, tensors)

    def _go_on(self, say: Callable[[str], None]) -> None:
        tensors = load_tensors(self._run / CHECKPOINT)
        self._training.load_state(
            {
                name.removeprefix("training."): value
                for name, value in tensors.items()
                if name.startswith("training.")
            }
        )
        self._best = tensors["best"]
        self._recalls, self._seconds = tensors["recalls"].tolist(), float(tensors["seconds"])
        say(f"resumed after epoch {self._training.epochs}")

    def _finish(self) -> None:
        every, epochs = self._stopping.evaluate_every, self._training.epochs
        at = [min(every * (place + 1), epochs) for place in range(len(self._recalls))]
        triples = len(self._known.trained.ids) * epochs
        update_run_json(
            self._run,
            status="finished",
            finished=timestamp(),
            training_seconds=self._seconds,
            samples_per_second=triples / max(1e-9, self._seconds),
            epochs=epochs,
            best_epoch=at[self._best_place()],
            curve=[[epoch, recall] for epoch, recall in zip(at, self._recalls, strict=True)],
            # Every number is of a user or an item, as in the tables of other models.
            parameters={"total": self._model.weight.numel(), "dense": 0},
            precision="float32",
        )
        with torch.no_grad():
            self._model.weight.copy_(self._best)
            users, items = self._model()
        save_tensors(
            self._run / VECTORS,
            {
                "users": users,
                "items": items,
                "user_codes": torch.from_numpy(self._known.user_codes),
            },
        )
        (self._run / CHECKPOINT).unlink()


def _positives(dataset: Dataset, split: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Codes of user and item of each row whose first label is 1."""
    rows = dataset.split(split)
    is_positive = rows.labels()[:, 0] == 1
    users, items = rows.role("user"), rows.role("item")
    if users is None or items is None:
        raise DataError(
            f"{dataset.path}: rows must tell user and item for LightGCN, got roles "
            f"{dataset.schema.roles}. Name both under [roles] of schema.toml."
        )
    return users[is_positive], items[is_positive]


def _codes_of(log: Path, column: str) -> NDArray[np.int64]:
    """Codes of a column of a task's log, which are those of the same values in a dataset."""
    return as_codes(pq.read_table(log, columns=[column])[column].combine_chunks())


def _places(known: NDArray[np.int64], wanted: NDArray[np.int64], must: str) -> NDArray[np.int64]:
    """Where codes stand among those that are known.

    Raises:
        DataError: One is not there; ``must`` says of whom and where.
    """
    order = np.argsort(known)
    found = order[np.minimum(np.searchsorted(known[order], wanted), len(known) - 1)]
    missing = np.flatnonzero(known[found] != wanted)
    if missing.size:
        raise DataError(
            f"lightgcn: {must}, got {missing.size} of {len(wanted)} unknown. It has ids alone; "
            f"leave it out of this table."
        )
    return found.astype(np.int64)
