# Everything here does its own set-up in .venv: it needs Python >= 3.11, make and the usual shell tools.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 3
MINUTES ?= 30

.DEFAULT_GOAL := help
.PHONY: help install demo test faults bench bench-failover model mutants soak check lint format clean

help:  ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## Set up .venv with the pinned dependencies (once; again when they change)
	@echo "Ready. The command is $(BIN)/campaigns; see it at work with: make demo"

demo: $(STAMP)  ## Send a campaign over two local servers and kill one of them on the way
	@$(BIN)/campaigns demo

test: check  ## Run the checks and all tests
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow"

faults: $(STAMP)  ## Inject every fault that there is, and judge what came of it (under half an hour)
	@$(BIN)/python -m pytest -n 2 --dist worksteal tests/faults

bench: $(STAMP)  ## Measure imports and failover on both databases (some minutes)
	@$(BIN)/python -m bench.import_recipients
	@$(BIN)/python -m bench.import_recipients --postgresql
	@$(BIN)/python -m bench.failover
	@$(BIN)/python -m bench.failover --postgresql

bench-failover: $(STAMP)  ## Measure five ways for the primary to fail, on both databases (about half an hour)
	@$(BIN)/python -m bench.moving
	@$(BIN)/python -m bench.outages
	@$(BIN)/python -m bench.overtaking
	@$(BIN)/python -m bench.moving --postgresql
	@$(BIN)/python -m bench.outages --postgresql

model: $(STAMP)  ## Check the model of the ledger's protocol, and that it breaks without its guards (needs spin; half an hour)
	@$(BIN)/python proof/run.py

mutants: $(STAMP)  ## Take out each guard in turn, and see that a test notices (some 20 minutes)
	@$(BIN)/python -m tests.mutants

soak: $(STAMP)  ## Random faults for MINUTES=30 on a stream of campaigns [SEED=n] [POSTGRESQL=1]
	@$(BIN)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(POSTGRESQL),--postgresql)

check: $(STAMP)  ## Lint, format, types and import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

lint: check  ## The same as check

format: $(STAMP)  ## Format the code and mend what the linter can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:  ## Remove .venv and all that the tools left behind
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# A .venv whose Python is gone is made anew; pip reports errors alone.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Campaigns needs Python >= 3.11, and '$(PYTHON)' is" \
	    "$$($(PYTHON) --version 2>&1 || echo 'not there')." \
	    "Name another one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "Making $(VENV) ..."; \
	  $(PYTHON) -m venv --clear $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed: install Python's venv module (on Debian: python3-venv)." >&2; exit 1; }; }
	@echo "Installing the dependencies into $(VENV) (once) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-input \
	  --constraint constraints.txt --editable '.[dev]'
	@touch $@
