"""Benchmarks are scripts beside the package, not part of it: their folder joins the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
