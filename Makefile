# make demo   the main job in small: generate, index, query, score; leaves build/demo
# make test   lint, types, import contract, documentation, tests
# make lint   the first three of these;  make docs  the documentation, in build/site
#
# Each makes its own environment, .venv, and installs into it; a second call finds all of it there.
# make bench  the short forms of all benchmarks, JSON in build/bench: under ten minutes on two free cores
#   make test PYTHON=/path/to/python3.12   with that Python, where .venv is still to be made
#   make demo KIND=gpu                     with the GPU packages, in .venv-gpu beside it
#   make test PYTEST="-k score -x"         some of the tests

KIND   ?= cpu
VENV   ?= $(if $(filter gpu,$(KIND)),.venv-gpu,.venv)
PYTHON ?=
PYTEST ?=

BIN     := $(VENV)/bin
PACKAGE := setup.cfg pyproject.toml
SOURCES := $(shell find retrieval tfrecords -type f ! -path '*/__pycache__/*' ! -path '* *')
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet

# TensorFlow and CUDA say at start what they could do; only warnings that matter are let through.
export TF_CPP_MIN_LOG_LEVEL ?= 2
export PYTHONUNBUFFERED := 1
export NO_MKDOCS_2_WARNING := 1

CANDIDATES := $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python)

# What a fit Python can do; Debian's comes without ensurepip, which `venv` needs.
FIT := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

# An environment knows its own folder: a copied or moved one would run the packages of the old place.
ifneq ($(shell cat $(VENV)/.made 2>/dev/null),$(CURDIR))
$(VENV)/.made: FORCE
endif

# There is one installation at a time: a plain one for the demo, or one that follows the sources for
# the tests, with which the demo is content too.
READY := $(if $(wildcard $(VENV)/.follows),$(VENV)/.follows,$(VENV)/.installed)

.PHONY: demo test lint docs bench FORCE
.NOTPARALLEL:
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/retrieve demo --out build/demo --overwrite

test: lint docs
	$(BIN)/python -m pytest $(PYTEST)

lint: $(VENV)/.follows
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

docs: $(VENV)/.follows
	$(BIN)/python -m mkdocs build --strict --site-dir build/site

# Each is the same script as the full one, with small numbers; a challenge and series are generated once.
bench: $(VENV)/.follows
	@mkdir -p build/bench
	$(BIN)/python benchmarks/challenge.py --images 12 --patches 300 --size 256 --out build/bench/challenge \
	    --json build/bench/challenge.json
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

# A build folder of old is cleared, since files that are gone from the sources would live on in it.
$(VENV)/.installed: $(VENV)/.made $(PACKAGE) $(SOURCES)
	@rm -rf build/lib build/bdist.*
	@echo "Installing patch-retrieval[$(KIND)] into $(VENV): some minutes the first time"
	$(INSTALL) '.[$(KIND)]'
	@touch $@

$(VENV)/.follows: $(VENV)/.made $(PACKAGE)
	@echo "Installing patch-retrieval[$(KIND),test,docs] into $(VENV): some minutes the first time"
	$(INSTALL) --editable '.[$(KIND),test,docs]'
	@rm -f $(VENV)/.installed
	@touch $@
