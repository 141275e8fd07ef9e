# Every target works in a fresh clone: what it needs is set up first, once.
# See scripts/setup.sh for PYTHON, ACCELERATOR, EXTRAS and TORCH_INDEX_URL.
.PHONY: help setup demo check test lint docs bench lock check-locks clean
.DEFAULT_GOAL := help

BIN := .venv/bin
export PYTHON ACCELERATOR EXTRAS TORCH_INDEX_URL

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 13

setup: ## .venv with the tested versions of everything (about 5 minutes, 5 GB, once)
	@bash scripts/setup.sh

demo: setup ## the whole path on the miniature world: teacher, students, table, report
	@$(BIN)/steper demo

check: lint ## lint, and every test that needs no Ray, engine or browser
	@$(BIN)/python -m pytest -q -n 2 -m "not java and not vllm" tests/unit

test: setup ## unit, integration and chaos tests; ARGS="-k packing" narrows them
	@$(BIN)/python -m pytest $(ARGS)

lint: setup ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: setup ## the documentation as HTML in docs/_build; a warning is an error
	@$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build

bench: setup ## figures of docs/benchmarks.md, measured again
	@set -e; for script in benchmarks/bench_*.py benchmarks/packing.py benchmarks/rollouts.py; do echo "$$script"; $(BIN)/python "$$script"; done

lock: setup ## write both locks: from .venv, and for GPUs by a resolver (after an upgrade that passes `make test`)
	@bash scripts/lock.sh

check-locks: setup ## prove that pyproject.toml resolves under both locks (needs a package index)
	@bash scripts/lock.sh check

clean: ## remove .venv, caches and builds; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
