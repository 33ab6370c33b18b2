"""A table of retrieval that is small enough to be made in a test, in this very process."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tamis.reproduce import make
from tamis.reproduce.make import MadeTable
from tamis.reproduce.retrieval import scores
from tamis.reproduce.retrieval.row import make_row
from tamis.reproduce.retrieval.tables import Better, RetrievalTable, SearchRow
from tamis.reproduce.runner import Cell

LEVEL = """
[[model.levels]]
user_tokens = 2
user_dim = 4
width = 4
module_tokens = 2
dot_units = 4
head_units = [4]
"""
# Vectors of the first batches are alike.
LATE = "start_steps = 8\nalpha_steps = 10\n"
TRAINING = """
[optimizer]
dense_lr = 0.01

[training]
batch_size = 128
max_epochs = 1
"""
SMALL = "embedding_dim = 4\nitem_dim = 8\ncross_dim = 4\nattention_units = 4\n"
RECIPES = {
    "two_tower": '[model]\nname = "two_tower"\nembedding_dim = 4\ntower_dim = 8\n',
    "alone": f'[model]\nname = "hsnn"\n{SMALL}codebooks = []\n{LEVEL}',
    "joint": f'[model]\nname = "hsnn"\n{SMALL}codebooks = [6]\n{LATE}{LEVEL}{LEVEL}',
    "deep": f'[model]\nname = "hsnn"\n{SMALL}codebooks = [4, 3]\n{LATE}{3 * LEVEL}',
    "apart": (
        f'[model]\nname = "hsnn"\n{SMALL}codebooks = [6]\nindex_learning = "sil"\n'
        f"cluster_steps = 4\n{LEVEL}{LEVEL}"
    ),
}
LIGHTGCN = """
[model]
embedding_dim = 8
num_layers = 2

[training]
lr = 0.02
batch_size = 128
max_epochs = 15

[stopping]
evaluate_every = 4
patience = 2
"""
TABLE = RetrievalTable(
    name="tiny",
    dataset="market_ads:400",
    recipes="small",
    rows=(
        SearchRow(name="popularity", method="popularity"),
        SearchRow(name="two_tower", model="two_tower", method="exact"),
        SearchRow(name="ann", model="two_tower", method="ann"),
        SearchRow(name="alone", model="alone", method="network"),
        SearchRow(name="rerank", model="alone", method="rerank"),
        SearchRow(name="joint", model="joint", method="network"),
        SearchRow(name="taught", model="joint", teacher="alone", method="network"),
        SearchRow(name="deep", model="deep", method="network", is_checked=True),
        SearchRow(name="kmeans", model="deep", method="kmeans_tree"),
        SearchRow(name="apart", model="apart", method="network"),
    ),
    reference="two_tower",
    large="alone",
    indexed=("joint", "deep"),
    separate="apart",
    rivals=("ann", "rerank"),
    comparisons=(Better(better="two_tower", worse="popularity"),),
    seeds=2,
    requests=12,
)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retrieval")
    recipes = folder / "recipes" / "small"
    recipes.mkdir(parents=True)
    for name, text in RECIPES.items():
        (recipes / f"{name}.toml").write_text(text + TRAINING)
    (recipes / "lightgcn.toml").write_text(LIGHTGCN)
    return folder


def _run_here(
    cells: list[Cell],
    *,
    command: Callable[[Cell], Sequence[str]],
    workers: int,
    on_done: Callable[[Cell], None],
) -> None:
    """As the processes would, but in this one, which has imported everything already."""
    for cell in cells:
        cell.run.mkdir(parents=True, exist_ok=True)
        module, folder = command(cell)[1:]
        assert module == "tamis.reproduce.retrieval"
        make_row(Path(folder))
        on_done(cell)


@pytest.fixture
def make_tiny(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[RetrievalTable], MadeTable]:
    def call(table: RetrievalTable) -> MadeTable:
        monkeypatch.setattr(make, "TABLES", {table.name: table})
        monkeypatch.setattr(make, "run_cells", _run_here)
        monkeypatch.setattr(scores, "_TIMED", 3)
        return make.make_table(
            table.name,
            data=place / "published",
            recipes=place / "recipes",
            work=place / "work",
            out=place / "results",
            workers=1,
            progress=lambda done, total: None,
        )

    return call


@pytest.fixture(scope="session")
def tiny_table() -> RetrievalTable:
    """A table over a market of 400 ads."""
    return TABLE
