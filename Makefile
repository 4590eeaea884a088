# The README's commands. Each makes what it needs: on a fresh machine `make quickstart` or `make test` is all there is to type.
#   make test ARGS="tests/prior -k sampling"        options for the command behind a target
#   make quickstart PYTHON=python3.12               another interpreter for a new .venv

PYTHON ?= python3
ARGS ?=
# A process per core, and the tests of a file in one of them: its fixtures are made once.
TESTS := -n 2 --dist loadfile -m "not slow and not faults"
VENV := .venv
LOWER := .venv-lower
# Beside pyproject.toml's lowest torch, on which `make test-lower-bounds` runs: a middle one, and the newest that pip finds.
TORCHES := 2.12.1 newest
BIN := $(VENV)/bin
PACKAGE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
DOCS := $(VENV)/.installed-docs
PIP_OPTIONS := --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: docs help quickstart compare-quantizers test test-slow test-gpu test-lower-bounds test-versions faults import-parity dist lint format clean check-python

help: ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-26s %s\n", $$1, $$2 }'

quickstart: $(PACKAGE) ## the whole job on the embedded images: tokenizer, codes, prior, samples, in runs/quickstart/
	$(BIN)/python scripts/quickstart.py $(ARGS)

compare-quantizers: $(PACKAGE) ## one small tokenizer per quantizer, a table and a picture, in runs/compare-quantizers/
	$(BIN)/python scripts/compare_quantizers.py $(ARGS)

test: $(DEV) ## the test suite, less what takes over a minute
	$(BIN)/pytest $(TESTS) $(ARGS)

test-slow: $(DEV) ## the tests that take over a minute each
	$(BIN)/pytest -m slow $(ARGS)

test-gpu: $(DEV) ## what only a CUDA GPU can tell, one process; skipped without one (docs/gpus.md)
	$(BIN)/pytest -m gpu $(ARGS)

test-lower-bounds: $(LOWER)/.installed ## the test suite on the oldest versions that pyproject.toml admits
	$(LOWER)/bin/pytest $(TESTS) $(ARGS)

test-versions: ## the test suite on the lowest, a middle and the newest torch; each is tried, also after one that fails
	$(MAKE) --no-print-directory --keep-going test-lower-bounds $(addprefix test-torch-,$(TORCHES))

test-torch-%: .venv-torch-%/.installed
	.venv-torch-$*/bin/pytest $(TESTS) $(ARGS)

faults: $(DEV) ## kills, damages and starves the commands, and prints a table of it (docs/reliability.md)
	$(BIN)/pytest -m faults $(ARGS)

dist: $(DEV) ## wheel and sdist in dist/, checked for an index page
	rm -rf build/lib dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

# The folder's clones by the names of their repositories; diffusers is the installed package.
PEERS ?= ../peers
import-parity: $(DEV) ## imported checkpoints against their projects' own code, of the clones in PEERS=folder
	$(BIN)/codegrid dev import-parity all --repository $(PEERS)

docs: $(DOCS) ## the pages and the API as HTML, in build/docs/; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -q -c docs -b html . build/docs

lint: $(DEV) ## ruff: rules and layout, changing nothing; basedpyright: types, of an installed copy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/lib build/site
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) --no-deps --no-build-isolation --target build/site .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(DEV) ## ruff: mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove caches and build output (keeps .venv and runs/)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

# A stamp is written only after the whole install went well, so that an interrupted one is done again, and an edited
# pyproject.toml too.
$(PACKAGE): pyproject.toml
	$(call make_venv,$(VENV))
	$(BIN)/python -m pip install $(PIP_OPTIONS) -e .
	@touch $@

$(DEV): pyproject.toml
	$(call make_venv,$(VENV))
	$(BIN)/python -m pip install $(PIP_OPTIONS) -e ".[dev]"
	@touch $(PACKAGE) $@

$(DOCS): pyproject.toml
	$(call make_venv,$(VENV))
	$(BIN)/python -m pip install $(PIP_OPTIONS) -e ".[docs]"
	@touch $(PACKAGE) $@

# Every bound "name>=version" of pyproject.toml as "name==version".
$(LOWER)/.installed: pyproject.toml
	$(call make_venv,$(LOWER))
	grep -oE '"[A-Za-z0-9_-]+>=[0-9.]+' pyproject.toml | tr -d '"' | sed 's/>=/==/' > $(LOWER)/lower-bounds.txt
	$(LOWER)/bin/python -m pip install $(PIP_OPTIONS) -c $(LOWER)/lower-bounds.txt -e ".[dev]"
	@touch $@

.venv-torch-%/.installed: pyproject.toml
	$(call make_venv,.venv-torch-$*)
	.venv-torch-$*/bin/python -m pip install $(PIP_OPTIONS) $(if $(filter newest,$*),,"torch==$*") -e ".[dev]"
	@touch $@

# A .venv that works is kept; a missing or half-made one is made anew. pip before 21.3 cannot install this project with -e.
define make_venv
	@$(1)/bin/python -m pip --version > /dev/null 2>&1 || \
	  { $(MAKE) --no-print-directory check-python && echo "Making $(1)" && $(PYTHON) -m venv --clear $(1); }
	@$(1)/bin/python -m pip install --quiet $(PIP_OPTIONS) "pip>=23"
endef

check-python:
	@command -v $(PYTHON) > /dev/null || { \
	  echo "There is no $(PYTHON). Codegrid needs Python 3.10 or newer: install it, or name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$(PYTHON) is `$(PYTHON) -V 2>&1`. Codegrid needs Python 3.10 or newer: try PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
