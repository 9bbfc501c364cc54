# make demo | make test | make help

VENV   ?= .venv
PYTHON ?= python3
PY     := $(VENV)/bin/python

# What `make demo` runs, and what pytest is given.
DEMO        ?= -m marlin run models/tale-moe "Once upon a time"
PYTEST_ARGS ?= -q -n 2
BENCH       ?= kernels models
LANE_ARGS   ?= $(PYTEST_ARGS)

export VENV PYTHON
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# Everything that marlin._C and shaders.bin are made from.
SOURCES := $(shell find csrc shaders -type f 2>/dev/null) setup.py
SETUP   := $(wildcard tools/setup.sh tools/build_*.py) pyproject.toml
BUILT   := $(VENV)/.built

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint bench docs build clean lanes widths validate sanitize

help: ## this text
	@echo 'Marlin: make demo runs it, make test checks it. The first run prepares $(VENV).'
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'Variables: PYTHON=... VENV=... PYTEST_ARGS="-k gemv" BENCH="kernels" DEMO="-m marlin devices"'

demo: $(BUILT) ## install what is missing, build, and stream a story from the small model in models/
	@$(PY) $(DEMO)

test: $(VENV)/.dev $(BUILT) ## build and run the tests
	$(PY) -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev $(BUILT) ## ruff, mypy, and all C by gcc and clang with warnings as errors
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PY) tools/lint_c.py

bench: $(BUILT) ## run the benchmarks of benchmarks/
	@for name in $(BENCH); do $(PY) benchmarks/$$name.py || exit 1; done

docs: $(BUILT) ## check links and Python examples of README.md and docs/
	$(PY) tools/check_docs.py

build: $(BUILT) ## bring marlin/_C and marlin/shaders.bin up to date

clean: ## remove what the build made, but for $(VENV)
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f marlin/*.so marlin/shaders.bin marlin/shaders.json $(BUILT)
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# ---- other lanes: the same tests on other devices. For another Mesa, name its file:
# ----     make test VK_DRIVER_FILES=/path/to/lvp_icd.x86_64.json

lanes: widths validate sanitize ## the tests at each subgroup size, under validation, with sanitizers

widths: $(VENV)/.dev $(BUILT) ## the tests with subgroups of 4, 8 and 16 on lavapipe
	for bits in 128 256 512; do \
	    LP_NATIVE_VECTOR_WIDTH=$$bits $(PY) -m pytest $(LANE_ARGS) || exit 1; \
	done

validate: $(VENV)/.dev $(BUILT) ## the tests under the Vulkan validation layer; any message fails
	tools/validate.sh $(PY) -m pytest -q

sanitize: $(VENV)/.dev $(BUILT) ## the tests with address and undefined-behaviour sanitizers
	tools/sanitize.sh $(PY) -m pytest $(LANE_ARGS)

# ---- stamps

$(VENV)/.base: $(SETUP)
	tools/setup.sh
	@touch $@ $(BUILT)

$(VENV)/.dev: $(SETUP)
	tools/setup.sh dev
	@touch $@ $(VENV)/.base $(BUILT)

$(BUILT): $(SOURCES) | $(VENV)/.base
	$(PY) tools/shaderc.py
	$(PY) setup.py -q build_ext --inplace
	@touch $@
