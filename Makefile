# Everything happens in .venv beside this file. `make` alone lists what there is.

PYTHON ?= python3
PIP_OPTIONS ?=
TEST_OPTIONS ?=
BENCH ?= kv engine serve route
CHECK_REQUESTS ?= 125000

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
# Bytecode is made afterwards, on all cores; without it every process of a cluster would compile what it imports.
INSTALL = $(BIN)/python -m pip --disable-pip-version-check install -qq --no-compile $(PIP_OPTIONS)
PROTOS := $(sort $(wildcard proto/cluster_rpc/v1/*.proto))
# Generated code imports what the protos import; mypy's stubs (.pyi) are written beside it.
PROTOC = $(BIN)/python -m grpc_tools.protoc -I proto --python_out=$(1) --grpc_python_out=$(1) --pyi_out=$(1) $(PROTOS)

# Tests and demos start many processes: each would compile anew what it imports of Baton.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo check test check-long test-deploy bench proto clean

help:  ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv with the exact versions of constraints.txt (once; again when they change)

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	    { echo "Python 3.11, 3.12 or 3.13 is needed: make setup PYTHON=python3.11"; exit 2; }
	@echo "[1/5] $(VENV) with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[2/5] downloading and unpacking about 1.6 GB: torch and, beside it, all the others"
	@$(INSTALL) --no-deps "$$(grep '^torch==' constraints.txt)" & torch=$$!; \
	    grep -v -e '^torch==' -e '^triton==' constraints.txt > $(VENV)/others.txt && \
	    $(INSTALL) --no-deps -r $(VENV)/others.txt; others=$$?; wait $$torch && exit $$others
	@echo "[3/5] what torch needs on this machine, and bytecode"
	@$(INSTALL) "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib > /dev/null 2>&1 || true  # some packages ship files for other Pythons
	@echo "[4/5] Baton itself, from this folder"
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@echo "[5/5] the CPU's kernels for float32, compiled once"
	@$(BIN)/python -m inference_engine.compile_kernels float32
	@touch $@

demo: setup  ## a real small cluster answers four prompts; ends with `identical: yes`
	@$(BIN)/baton demo

check: setup  ## format, lint, types, rows of the house, stubs, house tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy .
	$(BIN)/lint-imports
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(call PROTOC,"$$fresh") && \
	    diff -r -x __init__.py -x __pycache__ "$$fresh/cluster_rpc/v1" cluster_rpc/v1 && echo "stubs: up to date" || \
	    { echo "stubs: not what proto/ says; run make proto"; exit 1; }
	$(BIN)/python -m pytest tests/house

# Half a minute that `make demo` need not wait for.
$(VENV)/.bfloat16: $(STAMP)
	@echo "the CPU's kernels for bfloat16, compiled once"
	@$(BIN)/python -m inference_engine.compile_kernels bfloat16
	@touch $@

# Its interpreter runs the GPU's kernels in tests. 190 MB that a CPU needs for nothing else; torch for CUDA has it.
$(VENV)/.triton: $(STAMP)
	@$(BIN)/python -c 'import triton' 2> /dev/null || \
	    { echo "triton, for tests alone: 190 MB"; $(INSTALL) --no-deps "$$(grep '^triton==' constraints.txt)"; }
	@touch $@

test: setup  ## all tests but those of make test-deploy
	@$(MAKE) --no-print-directory -j 2 $(VENV)/.triton $(VENV)/.bfloat16
	$(BIN)/python -m pytest -n 2 -m "not deploy and not alone" $(TEST_OPTIONS)
	$(BIN)/python -m pytest -m alone $(TEST_OPTIONS) $$(grep -rl --include='test_*.py' 'pytest\.mark\.alone' tests)

# Each line's facts are committed; what a line does alone, shorter: `baton check --help`.
check-long: setup  ## prove it, for hours: 8 times 125,000 simulated requests (CHECK_REQUESTS), corruptions, machines, bugs, 72 cells
	$(BIN)/python -m tests.planted_bugs --json > docs/proof/planted_bugs.json
	$(BIN)/baton check --corruptions 10000 --blocks 1000000 --json > docs/proof/corruptions.json
	$(BIN)/python -m tests.machines --json > docs/proof/state_machines.json
	$(BIN)/python -m tests.failure_grid --json docs/proof/failure_grid.json
	@set -e; for part in 0 1 2 3 4 5 6 7; do echo "simulation: part $$part of 0 to 7"; \
	    $(BIN)/baton check --requests $(CHECK_REQUESTS) --first $${part}00000 --json > docs/proof/simulation/$$part.json; done

test-deploy: setup  ## `ray up` over ssh on this machine (slow)
	$(BIN)/python -m pytest -m deploy $(TEST_OPTIONS)

bench: setup $(VENV)/.bfloat16  ## measure each part against its limit or peer (BENCH="kv engine serve route")
	@set -e; for name in $(BENCH); do $(BIN)/baton bench $$name; done

proto: setup  ## write the stubs of proto/ anew
	$(call PROTOC,.)

clean:  ## remove what tools have left; .venv stays
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
