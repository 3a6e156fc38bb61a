# `make demo` and `make test` need only python >= 3.11 and make; everything else is installed into .venv from pyproject.toml.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check format lint types contracts cover docs wheel bench clean

demo: $(VENV)/.cli
	$(BIN)/eventstream demo $(ARGS)

test: $(VENV)/.test
	$(BIN)/pytest --numprocesses auto $(ARGS)

check: format lint types contracts test cover wheel

format: $(VENV)/.check
	$(BIN)/ruff format --check .

lint: $(VENV)/.check
	$(BIN)/ruff check .

types: $(VENV)/.check
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright --verifytypes eventstream --ignoreexternal

contracts: $(VENV)/.check
	$(BIN)/lint-imports

cover: $(VENV)/.test
	rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest --numprocesses auto -m "not unmeasured" $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/python tests/coverage_floor.py

wheel: $(VENV)/.check
	rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel .
	$(PYTHON) -m venv --clear build/wheel/venv
	build/wheel/venv/bin/pip install --quiet build/wheel/*.whl
	cd build/wheel && venv/bin/python -c "import eventstream, sys; assert 'wheel' in eventstream.__file__, eventstream.__file__; print('wheel', eventstream.__version__, 'imports')"

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# One stamp for each set of packages, so that a command installs what it needs and no more.

$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit("python 3.11 or newer is needed: make PYTHON=python3.x") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"

$(VENV)/.cli: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --editable ".[cli]"
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --editable ".[all]" --group test
	touch $@

$(VENV)/.check: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --editable ".[all]" --group test --group check --group bench
	touch $@

$(VENV)/.bench: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --editable ".[all]" --group bench
	touch $@
