# Every target sets up what it needs: a fresh machine wants Python >= 3.11 and make, no more.
# What is installed stays in .venv and is brought up to date when pyproject.toml or
# constraints.txt change.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first of these that is Python >= 3.11 and can make virtual environments is taken.
PYTHON ?= python3.11 python3.12 python3.13 python3

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check

# Each takes a processor and 2 GB of memory.
WORKERS ?= 2

GPU := $(shell nvidia-smi -L 2>/dev/null)
# Of pip's output only what takes long; its errors go to stderr and are all shown.
PROGRESS := awk '/Downloading .*[0-9][0-9]\.[0-9] MB/ { print "  downloading", $$2, $$3, $$4 } \
	/^Installing collected/ { print "  unpacking", NF - 3, "packages" } { fflush() }'

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: $(VENV)/.demo-stamp ## fit, build and verify a detector on real factory images
	@$(BIN)/python examples/demo.py

.PHONY: test
test: check ## all checks, then all tests
	@$(if $(GPU),,echo "test: tests marked gpu are left out: no NVIDIA GPU here")
	@$(BIN)/python -m pytest -m '$(if $(GPU),,not gpu)' --numprocesses $(WORKERS) --dist loadfile

.PHONY: test-fast
test-fast: $(VENV)/.dev-stamp ## the tests that take seconds, and no checks
	@$(BIN)/python -m pytest -m 'not slow and not gpu'

.PHONY: test-gpu
test-gpu: $(VENV)/.dev-stamp ## the tests that need an NVIDIA GPU, real engines
	@$(if $(GPU),,echo "test-gpu: no NVIDIA GPU here: each test says what it misses, and is skipped")
	@$(BIN)/python -m pytest -m gpu

.PHONY: bench
bench: $(VENV)/.dev-stamp ## every family beside the peers (an hour or two; QUICK=1: minutes, to try it)
	@$(BIN)/python benchmarks/peers.py all $(if $(QUICK),--quick,--document docs/benchmarks.md)

.PHONY: check
check: check-style check-types check-imports check-links ## style, types, import order, dead links

.PHONY: check-style
check-style: $(VENV)/.dev-stamp
	@echo "check: style (ruff)"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

.PHONY: check-types
check-types: $(VENV)/.dev-stamp
	@echo "check: types (mypy)"
	@$(BIN)/mypy vadexport examples tests/check_links.py

.PHONY: check-imports
check-imports: $(VENV)/.dev-stamp
	@echo "check: import order (import-linter)"
	@$(BIN)/lint-imports --no-logo

.PHONY: check-links
check-links: $(VENV)/.dev-stamp
	@echo "check: links and commands in the documents"
	@$(BIN)/python tests/check_links.py

.PHONY: format
format: $(VENV)/.dev-stamp ## format the code, mend what ruff can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# torch changes only when asked to (make constraints TORCH=2.14.0): figures hang on it. What only
# its CUDA build needs is left out, so that the set fits both builds.
TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)

.PHONY: constraints
constraints: ## renew constraints.txt: the newest versions that pyproject.toml allows
	@rm -rf build/constraints
	@$(MAKE) --no-print-directory VENV=build/constraints build/constraints/pyvenv.cfg
	@echo "installing the newest versions (a few minutes)"
	@build/constraints/bin/python -m pip install --disable-pip-version-check \
		'torch==$(TORCH)' '.[demo,dev]' | $(PROGRESS)
	@sed '/^[^#]/d' constraints.txt >build/constraints.txt
	@build/constraints/bin/python -m pip freeze --all --exclude pip --exclude vadexport \
		| sed -E 's/\+[a-z0-9]+$$//; /^(cuda-|nvidia-|triton=)/d' \
		| LC_ALL=C sort -f >>build/constraints.txt
	@mv build/constraints.txt constraints.txt
	@rm -rf build/constraints
	@echo "constraints.txt is new: run make test, then commit it"

.PHONY: clean
clean: ## remove what was built, and all caches
	@rm -rf build dist demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find vadexport tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## also remove .venv
	@rm -rf $(VENV)

# ------------------------------------------------------------------------------ set-up

$(VENV)/pyvenv.cfg:
	@for python in $(PYTHON); do \
		if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
			2>/dev/null; then break; fi; \
		python=; \
	done; \
	if [ -z "$$python" ]; then \
		echo "no Python >= 3.11 that can make virtual environments among: $(PYTHON)" >&2; \
		echo "install one (Debian, Ubuntu: python3 and python3-venv), or make PYTHON=/path/to/it" >&2; \
		exit 1; \
	fi; \
	echo "making $(VENV) with $$($$python --version)"; \
	$$python -m venv --clear $(VENV)

$(VENV)/.dev-stamp: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	@echo "installing vadexport and what its tests need (a few minutes)"
	@$(INSTALL) --constraint constraints.txt --editable '.[demo,dev]' | $(PROGRESS)
	@touch $(VENV)/.demo-stamp $@

$(VENV)/.demo-stamp: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	@echo "installing vadexport and what the demo needs (a few minutes)"
	@$(INSTALL) --constraint constraints.txt --editable '.[demo]' | $(PROGRESS)
	@touch $@
