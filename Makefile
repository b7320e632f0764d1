.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo train test test-all lint format docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

install: $(INSTALLED)  ## make the virtual environment (.venv) with the tested versions

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(INSTALLED)  ## train on the embedded demo corpus, both stages, and say what to do next
	$(BIN)/fourm_ser train

train: $(INSTALLED)  ## train with options of your own: make train ARGS="encoder=bert_wav2vec loss=ce_center"
	$(BIN)/fourm_ser train $(ARGS)

test: $(INSTALLED)  ## run the tests: no network, no GPU
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal

test-all: $(INSTALLED)  ## the slow ones, too: every case of every encoder and corpus, runs that die anywhere
	$(BIN)/python -m pytest --all --numprocesses=auto --maxprocesses=4 --dist=worksteal

lint: $(INSTALLED)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.documented  ## build the documentation into build/docs: pages, search, every key, the Python interface
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --config-file .mkdocs.yml
	@echo build/docs/index.html

$(VENV)/.documented: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $@

clean:  ## remove the virtual environment and what tools left (runs and the cache stay)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
