# make demo       generate, solve and score a small challenge, in build/demo
# make test       check style, types, import contract and documentation, and run the tests
# make lint       check style, types and import contract
# make docs       build the documentation, in build/site
# make coverage   run the tests and print the lines that they miss; XML in build/coverage.xml
# make bench      run the short forms of all benchmarks, JSON in build/bench: ten minutes on two free cores
#
# Each target creates the environment .venv, or reuses it.
#   make test PYTHON=/path/to/python3.12   create .venv with that Python
#   make demo KIND=gpu                     use the GPU packages, in .venv-gpu
#   make test PYTEST="-k score -x"         run some of the tests
#   make test WORKERS=                     run the tests in one process

KIND   ?= cpu
VENV   ?= $(if $(filter gpu,$(KIND)),.venv-gpu,.venv)
PYTHON ?=
PYTEST ?=

# Tests of a file share models and folders, so a file runs on one worker. The files run in the order of
# tests/conftest.py, the longest ones first.
WORKERS ?= --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

BIN     := $(VENV)/bin
PACKAGE := setup.cfg pyproject.toml
SOURCES := $(shell find retrieval tfrecords -type f ! -path '*/__pycache__/*' ! -path '* *')
# Python compiles a module when it is imported first: most modules of the packages never are.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile

# Hide TensorFlow's start-up messages, but not its warnings.
export TF_CPP_MIN_LOG_LEVEL ?= 2
export PYTHONUNBUFFERED := 1
export NO_MKDOCS_2_WARNING := 1

CANDIDATES := $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python)

# Test a Python: a supported version with venv and ensurepip, which Debian packages separately.
FIT := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

# An environment holds absolute paths: recreate it after a copy or a move.
ifneq ($(shell cat $(VENV)/.made 2>/dev/null),$(CURDIR))
$(VENV)/.made: FORCE
endif

# The demo needs a plain installation, the tests an editable one. The demo also accepts the editable one.
READY := $(if $(wildcard $(VENV)/.follows),$(VENV)/.follows,$(VENV)/.installed)

.PHONY: demo test lint docs coverage bench FORCE
.NOTPARALLEL:
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/retrieve demo --out build/demo --overwrite

test: lint docs
	$(BIN)/python -m pytest $(WORKERS) $(PYTEST)

coverage: $(VENV)/.follows
	$(BIN)/python -m pytest --cov --cov-report=term --cov-report=xml:build/coverage.xml $(PYTEST)

lint: $(VENV)/.follows
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

docs: $(VENV)/.follows
	$(BIN)/python -m mkdocs build --strict --site-dir build/site

# The scripts are those of the full benchmarks, with small numbers.
bench: $(VENV)/.follows
	@mkdir -p build/bench
	$(BIN)/python benchmarks/challenge.py --images 12 --patches 300 --size 256 --out build/bench/challenge \
	    --json build/bench/challenge.json
	$(BIN)/python benchmarks/startup.py --repeats 3 --json build/bench/startup.json
	$(BIN)/python benchmarks/embedding.py --repeats 3 --json build/bench/embedding.json
	$(BIN)/python benchmarks/kinds.py build/bench/challenge/index build/bench/challenge/test_patches.tfrecords \
	    --windows 200000 --queries 200 --few 20 --turns 1 --json build/bench/kinds.json
	$(BIN)/python benchmarks/stream.py --series 8 --steps 40 --out build/bench/stream --json build/bench/stream.json
	$(BIN)/python benchmarks/scale.py --images 12 48 600 6000 60000 --most 48 --scenes 2 --queries 100 \
	    --work build/bench/scale --json build/bench/scale.json
	$(BIN)/python benchmarks/shards.py --images 12 --queries 500 --shards 2 --json build/bench/shards.json
	@ls -l build/bench/*.json

$(VENV)/.made:
	@if ! $(BIN)/python -c '$(FIT)' 2>/dev/null || \
	    [ "$$($(BIN)/pip --version 2>/dev/null)" != "$$($(BIN)/python -m pip --version 2>/dev/null)" ]; then \
	  for python in $(CANDIDATES); do \
	    if "$$python" -c '$(FIT)' 2>/dev/null; then fit="$$python"; break; fi; \
	  done; \
	  if [ -z "$$fit" ]; then \
	    echo "No fit Python: expected 3.11, 3.12 or 3.13 with its venv module; looked for" \
	      "$(CANDIDATES)." >&2; \
	    echo "Install one (Debian, Ubuntu: apt install python3 python3-venv), or name it:" \
	      "make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$("$$fit" --version)"; \
	  "$$fit" -m venv --clear $(VENV); \
	fi
	@rm -f $(VENV)/.installed $(VENV)/.follows
	@printf '%s\n' "$(CURDIR)" > $@

# Remove the old build folder, because it may hold files that the sources no longer have.
$(VENV)/.installed: $(VENV)/.made $(PACKAGE) $(SOURCES)
	@rm -rf build/lib build/bdist.*
	@echo "Installing patch-retrieval[$(KIND)] into $(VENV): some minutes the first time"
	$(INSTALL) '.[$(KIND)]'
	@touch $@

$(VENV)/.follows: $(VENV)/.made $(PACKAGE)
	@echo "Installing patch-retrieval[$(KIND),labels,test,docs] into $(VENV): some minutes the first time"
	$(INSTALL) --editable '.[$(KIND),labels,test,docs]'
	@rm -f $(VENV)/.installed
	@touch $@
