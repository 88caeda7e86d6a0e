# make train   set up, train three levels on the embedded digits
# make test    set up, check style and types, build the documentation, run the whole suite
# make soak    the proofs that take longer
# make docs    build the documentation into site/
# make clean   remove what these targets made; runs/ stays
#
# Settings, as in `make test PYTHON=python3.12`:
PYTHON = python3
LEVELS = 3
WORKERS = 2
PYTEST_ARGS =

VENV := .venv
BIN  := $(VENV)/bin
LOG  := $(VENV)/install.log

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

# What pip says goes to a log, whose end is shown when it fails.
define install
@$(BIN)/python -m pip install --progress-bar off -c constraints.txt -e '$(1)' >$(LOG) 2>&1 \
    || { tail -n 40 $(LOG) >&2; echo 'Installation failed; the end of $(LOG) is above.' >&2; exit 1; }
endef

PYTEST := $(BIN)/python -m pytest -q $(PYTEST_ARGS)

.PHONY: train test lint soak docs clean
.NOTPARALLEL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := train

train: $(VENV)/.installed
	@echo 'To type halikit yourself:  . $(BIN)/activate'
	@$(BIN)/halikit train --levels $(LEVELS) --set threads=2

test: lint docs
	@OMP_NUM_THREADS=1 $(PYTEST) -n $(WORKERS) --dist worksteal

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check --quiet --output-format concise .
	@$(BIN)/mypy --no-error-summary

# Atheris has no wheels for every system and Python.
soak: $(VENV)/.installed-dev
	@$(BIN)/python -m pip install --progress-bar off -c constraints.txt -e '.[dev,fuzz]' >$(LOG) 2>&1 \
	    || echo 'atheris does not install here: its tests are skipped'
	@$(PYTEST) -m soak --timeout 0

docs: $(VENV)/.installed-docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean:
	rm -rf $(VENV) site build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "halikit needs Python 3.11 or later; this is " + sys.version)'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# One stamp for each set of extras: nothing is installed twice until the dependencies change.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing halikit into $(VENV)/; this takes a few minutes …'
	$(call install,.)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing halikit and its test tools into $(VENV)/; this takes a few minutes …'
	$(call install,.[dev])
	@touch $@ $(VENV)/.installed $(VENV)/.installed-docs

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing the documentation tools into $(VENV)/; this takes a few minutes …'
	$(call install,.[docs])
	@touch $@ $(VENV)/.installed
