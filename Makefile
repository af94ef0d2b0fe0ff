# `make sample` generates audio with the bundled pipeline, `make test` runs checks and tests, `make docs` builds the site,
# `make test-lowest` runs the tests with the lowest versions in pyproject.toml, `make gpu-check` tests and measures
# everything on a GPU. Each installs the project first: into .venv, or into .venv-lowest for `make test-lowest`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest

.PHONY: sample test test-slow test-lowest gpu-check lint docs clean

sample: $(VENV)/.installed
	@if grep --quiet '"complete": true' samples/samples.json 2>/dev/null; then \
		echo "The ten digits are in the folder samples. Delete the folder to generate them again."; \
	else \
		echo "$(BIN)/sashimi-sample --steps 200 --out samples --overwrite"; \
		$(BIN)/sashimi-sample --steps 200 --out samples --overwrite; \
	fi

test: $(VENV)/.installed-test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

test-lowest: $(LOWEST)/.installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest --numprocesses 2 --dist loadfile

gpu-check: $(VENV)/.installed-test
	$(BIN)/python -m sashimi_diffusion.benchmarks.gpu_check

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sashimi_diffusion kernels/sashimi_kernels evaluation/sashimi_evaluation

docs: $(VENV)/.installed-test
	$(BIN)/sphinx-build --fail-on-warning --builder html docs docs/_build/html

# Make an environment in $(1) unless a complete one is there. An interrupted creation leaves no pip or no activate, and an
# interrupted installation leaves packages without a list of their files.
define environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	{ echo "error: $(PYTHON) is not Python 3.10 or newer: install one and name it, for example make PYTHON=python3.12" >&2; exit 2; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	{ echo "error: $(PYTHON) cannot create environments: install its module venv (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; }
@test -f $(1)/bin/activate && $(1)/bin/python -I -c 'import sys, pip; from importlib.metadata import distributions; \
	sys.exit(any(package.files is None for package in distributions()))' 2>/dev/null || \
	{ echo "$(PYTHON) -m venv --clear $(1)"; $(PYTHON) -m venv --clear $(1); }
endef

$(VENV)/.installed: pyproject.toml
	$(call environment,$(VENV))
	$(BIN)/python -m pip install --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml
	$(call environment,$(VENV))
	$(BIN)/python -m pip install --editable ".[test]"
	@touch $@ $(VENV)/.installed

# With a later Python, other packages require a later NumPy than the lower bound.
$(LOWEST)/.installed: PYTHON := python3.10
$(LOWEST)/.installed: pyproject.toml
	$(call environment,$(LOWEST))
	$(LOWEST)/bin/python -m pip install uv
	$(LOWEST)/bin/uv pip install --python $(LOWEST)/bin/python --resolution lowest-direct --editable ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) $(LOWEST) samples docs/_build
