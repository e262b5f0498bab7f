PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
EXTRAS := --extra cpu --extra pipeline --extra serving --extra test
# A mark that is newer than what the environment was made from, so that nothing is set up twice.
READY := $(VENV)/.ready
# The sub-packages as they are when imported, for the type checker.
TYPING := $(VENV)/typing/sigline

.PHONY: demo test check bench clean

demo: $(READY)
	$(BIN)/sigline demo

test: $(READY)
	$(BIN)/python -m pytest

check: $(READY) $(TYPING)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -m "not tfx and not slow"

bench: $(READY)
	$(BIN)/python benchmarks/ingest.py

$(READY): pyproject.toml uv.lock setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv sync --quiet --active --locked --inexact $(EXTRAS)
	touch $@

$(TYPING):
	mkdir -p $@
	ln -sfn $(addprefix $(CURDIR)/,schemas trainer components serving pipeline) $@
	ln -sf $(wildcard $(CURDIR)/sigline/*.py) $@

clean:
	rm -rf $(VENV)
