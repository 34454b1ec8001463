# The README's two commands, and what keeps the pages true. Each makes the environment where it is missing.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test test-long lint docs clean

run: .venv/installed
	$(BIN)/shardwise

test: .venv/installed-test
	$(BIN)/python -m pytest

# What starts many real servers, and takes minutes.
test-long: .venv/installed-test
	$(BIN)/python -m pytest -m long

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The tables in docs/ are what our own command prints.
docs: .venv/installed-test
	$(BIN)/python -m tests.fit.tables

# torch comes first and alone: a looser requirement elsewhere must find the pinned build in place.
.venv/torch: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	touch $@

.venv/installed: .venv/torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@

clean:
	rm -rf .venv
