# `make sample` generates audio with the bundled pipeline, `make test` runs checks and tests, `make docs` builds the site,
# `make gpu-check` tests and measures everything on a GPU.
# Each installs the project into .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: sample test test-slow gpu-check lint docs clean

sample: $(VENV)/.installed
	$(BIN)/sashimi-sample --steps 200 --out samples --overwrite

test: $(VENV)/.installed-test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

gpu-check: $(VENV)/.installed-test
	$(BIN)/python -m sashimi_diffusion.benchmarks.gpu_check

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sashimi_diffusion kernels/sashimi_kernels evaluation/sashimi_evaluation

docs: $(VENV)/.installed-test
	$(BIN)/sphinx-build --fail-on-warning --builder html docs docs/_build/html

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) samples docs/_build
