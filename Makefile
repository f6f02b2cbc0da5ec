# Everything a developer or CI does with this project. `make` alone lists the targets.
#
# Needs make and a Python 3.11, 3.12 or 3.13 with its venv module; everything else is installed into .venv from
# the hashed locks. PYTHON=/path/to/python chooses an interpreter.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
LOCK := build/lock/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	--no-header --no-emit-index-url --no-emit-find-links
PYTEST := $(BIN)/python -m pytest $(PYTEST_ARGS)
WORKERS ?= 2

# The first interpreter that is of a supported version; empty when there is none (see $(BIN)/python).
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3 python; do \
	"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& { command -v "$$python"; break; }; done)

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

# Installation ------------------------------------------------------------------------------------------------

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "streamproc needs Python 3.11, 3.12 or 3.13 and found none of them on PATH." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@if ! "$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null; then \
		echo "$(PYTHON) has no venv module. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; fi
	"$(PYTHON)" -m venv $(VENV)

# Runtime dependencies and the project itself: what `make demo` needs, in one stamp.
$(VENV)/.installed: requirements.lock requirements-build.lock pyproject.toml hatch_build.py $(wildcard native/*) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock -r requirements-build.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	@touch $@

$(VENV)/.installed-aws: requirements-aws.lock $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-aws.lock
	@touch $@

.PHONY: install
install: $(VENV)/.installed-dev ## Install streamproc and the development tools into .venv

# Running -----------------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV)/.installed ## Run the whole pipeline on this machine (ARGS="--events 500000 --headless")
	$(BIN)/streamproc demo $(ARGS)

.PHONY: demo-aws
demo-aws: $(VENV)/.installed-aws ## Logs, Spark, Lambda, Redshift's loader and QuickSight on local servers (Java 17)
	$(BIN)/python -m tests.e2e.aws_pipeline $(ARGS)

.PHONY: bench
bench: $(VENV)/.installed-dev ## Measure streamproc: the counting workload and the shipped page (ARGS="--rounds 5")
	$(BIN)/python -m benchmarks.comparison --peers streamproc --workloads w1,w2 $(ARGS)

.PHONY: bench-peers
bench-peers: $(VENV)/.installed-dev ## streamproc and its peers on the same events, answers compared (ARGS=--help)
	$(BIN)/python -m benchmarks.comparison $(ARGS)

.PHONY: bench-plot
bench-plot: $(VENV)/.installed-dev ## Draw the newest results as docs/peers.svg (ARGS="RESULTS --workload w1")
	$(BIN)/python -m benchmarks.comparison.plot $(ARGS)

.PHONY: bench-ci
bench-ci: $(VENV)/.installed-dev ## CPU of each stage beside the stored baseline: reports, never fails (ARGS=--write)
	$(BIN)/python -m benchmarks.baseline $(ARGS)

.PHONY: bench-stages
bench-stages: $(VENV)/.installed-dev ## CPU of each stage of the shipped page (ARGS="--events 2000000 --rate 500")
	$(BIN)/python benchmarks/stages.py $(ARGS)

.PHONY: replay-show
replay-show: $(VENV)/.installed-dev ## Replay 2,000,000 events beside live traffic, checked by an oracle (ARGS=--help)
	$(BIN)/python -m tests.e2e.replay_show $(ARGS)

.PHONY: bench-kinesis
bench-kinesis: $(VENV)/.installed-dev ## What reading Kinesis costs, on a local server (ARGS="decode", "local --events 50000")
	$(BIN)/python -m benchmarks.kinesis $(ARGS)

.PHONY: bench-dashboard
bench-dashboard: $(VENV)/.installed-dev ## How long the dashboard makes a viewer wait on 1,000,000 rows (ARGS="--rounds 9")
	$(BIN)/python -m benchmarks.dashboard $(ARGS)

.PHONY: bench-dashboard-cost
bench-dashboard-cost: $(VENV)/.installed-dev ## What an open dashboard takes from the worker under full load (ARGS="--rounds 3")
	$(BIN)/python -m benchmarks.dashboard_cost $(ARGS)

.PHONY: screenshots
screenshots: $(VENV)/.installed-dev ## Take the pages of a running dashboard (ARGS="http://localhost:8090/")
	$(BIN)/python -m tests.dashboard.screenshots $(ARGS)

.PHONY: bench-logs
bench-logs: $(VENV)/.installed-dev ## Backfill of web logs, or their decoder alone (ARGS="--mib 100", ARGS=--parse)
	$(BIN)/python -m benchmarks.logs $(ARGS)

.PHONY: bench-lambda
bench-lambda: $(VENV)/.installed-dev ## Cold start of the Lambda function in fresh processes (ARGS="--rounds 7 --zip FOLDER")
	$(BIN)/python -m benchmarks.lambda_cold_start $(ARGS)

# Checking ----------------------------------------------------------------------------------------------------

.PHONY: test
test: $(VENV)/.installed-dev ## Fast suite on the embedded broker and database, under ten minutes
	$(PYTEST) -n $(WORKERS) -m "not slow and not kafka and not faults and not mutants and not aws and not browser" $(ARGS)

.PHONY: test-slow
test-slow: $(VENV)/.installed-dev ## The tests that take minutes: large inputs, crashes under load
	$(PYTEST) -n $(WORKERS) --dist loadfile -m "slow and not kafka" $(ARGS)

.PHONY: soak
soak: $(VENV)/.installed-dev ## Two hours of steady load at twelve times event time: nothing may grow (SECONDS=7200)
	STREAMPROC_SOAK_SECONDS=$(or $(SECONDS),7200) STREAMPROC_SOAK_LOG=$(or $(LOG),soak.jsonl) $(BIN)/python -m pytest -n 0 tests/e2e/test_soak.py

.PHONY: test-faults
test-faults: $(VENV)/.installed-dev ## The crash bench, a bounded part or more (ARGS="--runs 200 --seed 7")
	$(if $(ARGS),$(BIN)/python -m tests.faults $(ARGS),$(PYTEST) -m faults tests/faults)

.PHONY: test-aws
test-aws: $(VENV)/.installed-aws ## The AWS side on local servers: Redshift, Lambda, EMR, QuickSight, templates
	$(PYTEST) -n $(WORKERS) -m aws $(ARGS)

.PHONY: test-browser
test-browser: $(VENV)/.installed-dev ## The dashboard in headless Chromium (Debian: apt install chromium chromium-driver)
	$(PYTEST) -m browser $(ARGS)

.PHONY: test-mutants
test-mutants: $(VENV)/.installed-dev ## Defects put into a copy of the protocol, each of which has to be noticed
	$(PYTEST) -n $(WORKERS) -m mutants tests/faults tests/simulation $(ARGS)

.PHONY: test-simulation
test-simulation: $(VENV)/.installed-dev ## The simulation's first 2,000 seeds, at most two minutes
	$(BIN)/python -m tests.simulation --seeds 2000 --seconds 120 --parallel $(WORKERS)

.PHONY: simulate
simulate: $(VENV)/.installed-dev ## More seeds, or one in detail (ARGS="--seeds 100000 --log runs.jsonl" or ARGS="--trace 7")
	$(BIN)/python -m tests.simulation $(ARGS)

# Its tests are part of the other suites and skip with a reason without it; this only fills the cache.
.PHONY: kinesis-local
kinesis-local: $(VENV)/.installed-dev ## Install the local Kinesis for the tests (Node 18 and npm)
	$(BIN)/python -m tests.support.kinesis_local

.PHONY: test-kafka
test-kafka: $(VENV)/.installed-dev ## The broker's tests on a real Apache Kafka (Java 17 and Maven)
	STREAMPROC_TEST_BROKER=kafka $(PYTEST) -n $(WORKERS) --dist loadfile -m "kafka or broker" $(ARGS)

.PHONY: lint
lint: $(VENV)/.installed-dev ## ruff, mypy --strict and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(VENV)/.installed-dev ## Format the code and sort the imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Packaging ---------------------------------------------------------------------------------------------------

build/lock/bin/uv: | $(BIN)/python
	"$(PYTHON)" -m venv build/lock
	build/lock/bin/pip install --quiet "uv==$(UV_VERSION)"

.PHONY: lock
lock: build/lock/bin/uv ## Resolve the dependencies again (ARGS=--upgrade for newer ones) and write the locks
	$(LOCK) $(ARGS) --extra msk --extra fanout --extra redshift --extra otel --extra alb pyproject.toml --output-file requirements.lock
	$(LOCK) $(ARGS) --extra msk --extra fanout --extra redshift --extra otel --extra alb --group dev --constraints requirements.lock \
		pyproject.toml --output-file requirements-dev.lock
	$(LOCK) $(ARGS) --extra msk --extra fanout --extra redshift --extra otel --extra alb --group aws --constraints requirements-dev.lock \
		pyproject.toml --output-file requirements-aws.lock
	$(LOCK) $(ARGS) --group emr --constraints requirements-aws.lock pyproject.toml --output-file requirements-emr.lock
	$(LOCK) $(ARGS) --group build --constraints requirements-dev.lock --output-file requirements-build.lock

.PHONY: emr-package
emr-package: $(VENV)/.installed ## Make what EMR needs in build/emr (ARGS="--arch aarch64 --topics DIR")
	$(BIN)/python deploy/emr/package.py build/emr $(ARGS)

.PHONY: image
image: ## Build the container image streamproc:local
	docker build --tag streamproc:local .

.PHONY: lambda-zip
lambda-zip: $(VENV)/.installed-dev ## Build the Lambda function's zips, arm64 and x86-64 (ARGS="--python 3.13")
	$(BIN)/python deploy/lambda/build_zip.py $(ARGS)

.PHONY: lambda-image
lambda-image: ## Build the Lambda function's image streamproc-lambda:local (ARGS="--platform linux/arm64")
	docker build $(ARGS) --file deploy/lambda/Dockerfile --tag streamproc-lambda:local .

# Random passwords for docker-compose.yml. The folder is closed to other users; the files in it are not, because
# the containers read them as users of their own.
.secrets: | $(BIN)/python
	@umask 077; mkdir -p $@.new
	@password=$$($(BIN)/python -c 'import secrets; print(secrets.token_urlsafe(24))'); \
	access=$$($(BIN)/python -c 'import secrets; print(secrets.token_hex(10))'); \
	secret=$$($(BIN)/python -c 'import secrets; print(secrets.token_urlsafe(30))'); \
	reader=$$($(BIN)/python -c 'import secrets; print(secrets.token_urlsafe(24))'); \
	viewer=$$($(BIN)/python -c 'import secrets; print(secrets.token_urlsafe(12))'); \
	url="postgresql://streamproc:$$password@postgres:5432/streamproc"; \
	printf '%s\n' "$$password" > $@.new/postgres_password; \
	printf '%s\n' "$$url" | tee $@.new/ledger_url > $@.new/warehouse_url; \
	printf 'postgresql://dashboard_reader:%s@postgres:5432/streamproc\n' "$$reader" > $@.new/dashboard_url; \
	printf '%s\n' "$$viewer" > $@.new/dashboard_password; \
	printf '%s\n' "$$access" > $@.new/s3_access_key; \
	printf '%s\n' "$$secret" > $@.new/s3_secret_key; \
	printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$$access" "$$secret" \
		> $@.new/aws_credentials
	@chmod 644 $@.new/*
	@mv $@.new $@

.PHONY: up
up: .secrets ## Start Kafka, PostgreSQL, an S3 server, two workers and the dashboard in containers
	docker compose up --build --detach

.PHONY: down
down: ## Stop the containers of `make up`; their volumes stay
	docker compose down

.PHONY: clean
clean: ## Remove everything that can be made again, the environment included
	rm -rf $(VENV) build dist demo-data .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache \
		benchmarks/results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
