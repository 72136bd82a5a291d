# Every target prepares .venv by itself; only python3 (3.11 or newer) and make are needed.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-slow check bench format

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED)  ## the built-in example: a few minutes, no downloads
	$(BIN)/deepen demo

test: $(INSTALLED)  ## tests, in minutes, side by side on all cores
	$(BIN)/python -m pytest -n auto --dist worksteal

test-slow: $(INSTALLED)  ## long drills: many kills, full-length runs
	$(BIN)/python -m pytest -m slow

check: $(INSTALLED)  ## format, lint, types, import directions, sizes of rooms and their folders
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(BIN)/python .ci/sizes.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)  ## speed and memory against peers, as ratios within one run
	$(BIN)/python benchmarks/train_cpu.py
	@if [ -n "$$DEEPEN_TEST_DATA" ]; then $(BIN)/python benchmarks/near_duplicates.py && $(BIN)/python benchmarks/curate.py; \
	else echo "near_duplicates.py and curate.py need DEEPEN_TEST_DATA (to compare, also datasketch and daft): skipped"; fi
