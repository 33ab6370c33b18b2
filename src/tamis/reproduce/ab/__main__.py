"""``python -m tamis.reproduce.ab FOLDER``: the process that makes one row of a table."""

import sys
from pathlib import Path

from tamis import api
from tamis.reproduce.ab.row import make_row

if __name__ == "__main__":
    api.prepare_process(1)
    make_row(Path(sys.argv[1]))
