# One command for each thing a person does here; `.ci/run` uses the same ones. Needs: git, make, Python 3.11 or newer with venv.

PYTHON ?= python3
VENV := .venv
# Pinned by constraints.txt. A stamp file tells which extras are installed; it is older than its two sources when they change.
PIP_INSTALL := $(VENV)/bin/python -m pip install --disable-pip-version-check $(if $(CI),--quiet) --constraint constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-long lint check docs clean

help:  ## list what `make` can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.demo  ## broker, simulated plant and daemon on this machine; SECONDS=60 stops by itself
	$(VENV)/bin/streamer demo $(if $(SECONDS),--seconds $(SECONDS))

test: $(VENV)/.test  ## the quick suite, two files at a time
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile

test-slow: $(VENV)/.test  ## what CI runs besides: kills, memory, what needs a while
	$(VENV)/bin/python -m pytest -m slow

test-long: $(VENV)/.test  ## every test, the ones that take minutes too
	$(VENV)/bin/python -m pytest -m ""

lint: $(VENV)/.test  ## ruff and mypy --strict
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

check: lint test  ## what CI runs

docs: $(VENV)/.test  ## write the reference pages anew from the code
	$(VENV)/bin/python -m tests.references

clean:  ## remove the virtual environment, caches and builds
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.demo: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[bench,demo,test,lint]'
	@touch $@ $(VENV)/.demo

$(VENV)/pyvenv.cfg:
	@command -v $(PYTHON) >/dev/null || \
	    { echo "There is no '$(PYTHON)' here; Python 3.11 or newer is needed (Debian: apt-get install python3-venv)." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "'$(PYTHON)' is $$($(PYTHON) --version 2>&1); 3.11 or newer is needed. Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "'$(PYTHON)' has no venv module (Debian: apt-get install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned dependencies into $(VENV); torch is large, so the first time takes minutes."
