"""The process of one row: ``python -m tamis.reproduce.retrieval FOLDER``."""

import sys
from pathlib import Path

from tamis.reproduce.retrieval.row import make_row

if __name__ == "__main__":
    make_row(Path(sys.argv[1]))
