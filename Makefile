# `make sample` installs the project into .venv and generates audio with the bundled pipeline; `make test` runs the tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: sample test test-slow lint clean

sample: $(VENV)/.installed
	$(BIN)/sashimi-sample --steps 200 --out samples

test: $(VENV)/.installed-test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) samples
