# The environment is made once, in .venv, and refreshed when pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# With more than one worker each test process gets one thread: threads beyond cores cost 5-15x.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q

.PHONY: setup quickstart test test-slow lint bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || (echo "make: tamis needs Python >= 3.11; call make PYTHON=python3.11"; exit 2)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $(STAMP)

quickstart: $(STAMP)
	$(BIN)/tamis quickstart

test: $(STAMP)
	$(PYTEST) -n 2

# Neighbours share what they train, so each worker takes half of them; whoever is done first helps.
# Shapes and types are checked by the plain tests, as far as those reach; here code runs as users run
# it, in half the time.
test-slow: $(STAMP)
	$(PYTEST) -n 2 --dist worksteal -m "slow and not gpu" --jaxtyping-packages=

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell src tests benchmarks docs README.md CHANGELOG.md CONTRIBUTING.md

bench: $(STAMP)
	for script in train_throughput sequence_throughput experts ingest loader memory early_stage funnel_replay retrieval_latency \
		retrieval_scaling serving quickstart; do \
		$(BIN)/python benchmarks/$$script.py --quick || exit 1; \
	done

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
