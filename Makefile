# `make` prints this help; `make env` comes by itself where a target needs it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV    ?= .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
EXAMPLE := examples/flights
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
unexport PYTHONDONTWRITEBYTECODE # without bytecode every start of the command compiles the package anew

# The first Python that runs and is one of ours; PYTHON=... chooses another. 3.11 first: the tests run on it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 "$$HOME"/.pyenv/versions/3.1[123].*/bin/python; do \
	"$$p" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo "$$p"; break; }; done)

.PHONY: help
help: ## print this help
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: env
env: $(STAMP) ## create .venv with exactly the locked packages, and this package editable

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found. Install one, or name it: make env PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	@touch $@

.PHONY: lint
lint: env ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: format
format: env ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: types
types: env ## mypy, strict
	$(BIN)/mypy

.PHONY: prism
prism: env ## the engine for streams on this machine, built once into the cache (Go, some minutes) or fetched
	@$(BIN)/python -c "from beam_pipelines.runners.prism_binary import find_prism; print(find_prism())"

.PHONY: postgres
postgres: ## the PostgreSQL of the tests, once (Debian's package)
	@bash tests/install_postgres.sh

.PHONY: test
test: env ## the everyday tests, under five minutes
	$(BIN)/pytest -q -n auto --dist loadfile -m "not slow and not flink and not cloud"

.PHONY: test-slow
test-slow: env ## whole jobs, the demo's figures, the docs' commands and code
	$(BIN)/pytest -q -n auto --dist loadfile -m "slow and not flink and not cloud"

.PHONY: flink
flink: env ## Beam's job server for Flink and Flink itself, built once into the cache (Java, Maven; a minute)
	@$(BIN)/python -c "from beam_pipelines.runners.flink.jars import find_job_server; print(find_job_server())"

.PHONY: test-flink
test-flink: env ## jobs on a real Flink cluster, which the tests start and end; parts of it are killed
	bash tests/cloud/install_gcs.sh
	$(BIN)/pytest -q -n 2 --dist loadfile -m flink

.PHONY: cloud-servers
cloud-servers: env ## local servers that speak as BigQuery and Cloud Storage do, and Terraform's providers, once into the cache
	bash tests/cloud/install_bigquery.sh
	bash tests/cloud/install_gcs.sh
	bash tests/cloud/install_terraform_stub.sh
	PATH="$(CURDIR)/$(BIN):$$PATH" sh tests/cloud/install_hadolint.sh
	PATH="$(CURDIR)/$(BIN):$$PATH" sh tests/cloud/install_kubernetes.sh

.PHONY: test-cloud
test-cloud: env cloud-servers ## BigQuery, Cloud Storage, Dataflow's graph, the template, Terraform: on local servers and offline
	$(BIN)/pytest -q -n auto --dist loadfile -m cloud

KILLS ?= 50

.PHONY: test-kills
test-kills: env ## kill -9 of a stream 50 times (KILLS=, SEED=): the nightly run
	KILLS=$(KILLS) SEED=$(SEED) $(BIN)/pytest -q -s -m slow tests/faults/test_kills.py

EXAMPLES ?= 200

.PHONY: test-laws
test-laws: env ## every property with twenty times as many examples: the nightly run
	LAWS=deep $(BIN)/pytest -q -n auto --dist loadfile -m "not slow"

.PHONY: test-parity
test-parity: env ## batch and stream agree, over many generated timelines (EXAMPLES=): the nightly run
	PARITY_EXAMPLES=$(EXAMPLES) $(BIN)/pytest -q -n auto --dist loadfile tests/parity

.PHONY: test-all
test-all: test test-slow test-flink test-cloud ## every test

.PHONY: docs
docs: env ## the site, strictly, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.PHONY: demo
demo: env ## the real flights of 2013 from CSV files to checked Parquet, twice
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash $(EXAMPLE)/demo.sh

.PHONY: bench-batch
bench-batch: env ## batch benchmarks against DuckDB and row-wise Beam; the last line is JSON
	$(BIN)/python benchmarks/batch.py

.PHONY: bench-stream
bench-stream: env ## stream benchmark on Prism, latency, the emulator; the last line is JSON
	$(BIN)/python benchmarks/stream.py

.PHONY: bench-flink
bench-flink: env ## J1 on a Flink cluster of this machine beside the local runners, batch and stream; the last line is JSON
	$(BIN)/python benchmarks/flink.py

.PHONY: bench-bigquery
bench-bigquery: env cloud-servers ## appends and loads into the local BigQuery server beside Beam's own; the last line is JSON
	$(BIN)/python benchmarks/bigquery.py

.PHONY: bench-database
bench-database: env postgres ## a table of PostgreSQL by Arrow and row by row; the last line is JSON
	$(BIN)/python benchmarks/database.py

.PHONY: bench-serving
bench-serving: env ## the serving view over 100 million rows against plain Parquet; commits; the last line is JSON
	$(BIN)/python benchmarks/serving.py

.PHONY: bench-verify
bench-verify: env ## batch against stream over 10 million rows, equal and with a thousand that differ; the last line is JSON
	$(BIN)/python benchmarks/verify.py

.PHONY: bench-memory
bench-memory: env ## memory at 1 and 8 million rows and at 10 GB of input; the last line is JSON
	$(BIN)/python benchmarks/memory.py

.PHONY: smoke
smoke: ## install from the version ranges on another Python and run a small job (SMOKE_PYTHON=... chooses it)
	bash tests/smoke.sh $(SMOKE_PYTHON)

LOCK := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links --quiet

.PHONY: lock
lock: env ## write the locks anew from pyproject.toml; UPGRADE=--upgrade takes new versions
	$(LOCK) --all-extras $(UPGRADE) --output-file requirements.lock
	$(LOCK) --extra gcp --extra databases --constraint requirements.lock --output-file requirements-run.lock

.PHONY: clean
clean: ## remove the environment, caches, the site and the demo's outputs
	rm -rf $(VENV) site build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf $(EXAMPLE)/data $(EXAMPLE)/lake $(EXAMPLE)/.beam_pipelines
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
