# Every target sets up .venv by itself; a second run finds it ready.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Hundreds of processes import the same modules, and vLLM's take 12 s to compile: once is enough.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.demo
ARGS ?=

.PHONY: help demo test test-vllm test-light lint check bench docs format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  ARGS="…" is passed on, e.g. make demo ARGS="--tasks 50"'

demo: $(DEMO_STAMP) ## Run agents through a real vLLM with the gate off and on; writes demo-report/
	@$(BIN)/entrogate demo $(ARGS)

test: $(STAMP) ## Run all tests: unit, integration, and e2e on a real vLLM
ifeq ($(strip $(ARGS)),)
	@$(BIN)/pytest --numprocesses=auto --dist=worksteal --durations=15 tests/unit tests/integration tests/deploy
	@$(BIN)/pytest --durations=15 tests/e2e
else
	@$(BIN)/pytest --durations=15 $(ARGS)
endif

# Files with a test that needs torch or vLLM say so.
NEEDS := '\("(torch|vllm|transformers|tokenizers|accelerate|peft)"'

test-vllm: $(STAMP) ## The part of the tests that needs torch or vLLM, or tools of their own
	@failed=0; \
	$(BIN)/pytest --numprocesses=auto --dist=worksteal --durations=15 \
	    $$(grep -rlE $(NEEDS) tests/unit tests/integration) tests/deploy || failed=1; \
	$(BIN)/pytest --durations=15 tests/e2e || failed=1; \
	exit $$failed

test-light: ## The rest, without vLLM, with the newest and with the lowest versions allowed
	@failed=0; for versions in newest lowest; do scripts/test-versions $$versions || failed=1; done; exit $$failed

lint: $(STAMP) ## Style, types, import contracts, security
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports
	@$(BIN)/bandit --quiet --configfile pyproject.toml --recursive app

check: lint docs test ## lint, docs, then test

bench: $(DEMO_STAMP) ## Measure the gateway's overhead against a scripted upstream
	@$(BIN)/entrogate bench overhead $(ARGS)

docs: $(STAMP) ## Build the documentation site into site/; a bad link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: $(STAMP) ## Rewrite the sources as ruff likes them
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## Remove everything that make created
	rm -rf $(VENV) demo-report site dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The demo waits for vLLM, the gateway and its agent alone; all else needs the rest as well.
PROJECTS := pyproject.toml app/entrogate_lab/pyproject.toml scripts/setup-venv

$(DEMO_STAMP): $(PROJECTS)
	@PYTHON="$(PYTHON)" scripts/setup-venv $(VENV) demo

$(STAMP): $(PROJECTS)
	@PYTHON="$(PYTHON)" scripts/setup-venv $(VENV) all
