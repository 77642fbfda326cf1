# Two commands on a machine with Python alone:  make demo   make test
# The environment is made once in .venv, and again when what it is made from changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
export MPLBACKEND ?= Agg

.PHONY: demo test slow check bench clean

demo: $(VENV)/made
	$(BIN)/python examples/quickstart.py

test: $(VENV)/made
	$(BIN)/python -m pytest -n auto --maxprocesses 4

slow: $(VENV)/made
	$(BIN)/python -m pytest -m "slow or gpu"

bench: $(VENV)/made
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/layerwise.py
	$(BIN)/python benchmarks/documents.py
	$(BIN)/python benchmarks/stores.py

check: $(VENV)/made
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/made: setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "pyterrier_kd needs Python 3.11 or newer, this is %s: make PYTHON=python3.x" % sys.version.split()[0])'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
