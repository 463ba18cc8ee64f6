# `make help` lists what there is. Needs Python 3.11 or newer and a network for the first installation.
# GNU make 3.81 (macOS) will do; paths are relative and tools run as modules, so folders may have spaces in their names.

PYTHON ?= python3
ARGS ?=

PY := .venv/bin/python
STAMP := .venv/.installed
# The index that torch came from, empty for pip's own. .venv remembers it; naming another one installs torch anew.
INSTALLED_INDEX := $(shell cat $(STAMP) 2>/dev/null)
TORCH_INDEX ?= $(INSTALLED_INDEX)
ifneq ($(TORCH_INDEX),$(INSTALLED_INDEX))
OTHER_TORCH := yes
endif

# Two to four workers with a thread each: the tests train many tiny models, and none of them can use a second core.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo lint test test-all browser clean force

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

install: $(STAMP) ## .venv with exactly the packages of constraints.txt; TORCH_INDEX=URL chooses another build of torch

demo: $(STAMP) ## train the built-in model and show base against tuned; ARGS="--seed 1" and the like are passed on
	$(PY) -m customized_grpo demo $(ARGS)

lint: $(STAMP) ## style and types
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m pyright

test: lint ## style, types and all tests that take seconds
	$(PYTEST) -m "not slow" $(ARGS)

test-all: lint browser ## the same with the tests that take minutes; installs what they need, Chromium included
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[dev,browser,datasets]"
	$(PYTEST) $(ARGS)

# From the system's packages where this may install them, else the one that Playwright fetches.
browser: $(STAMP)
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
	then apt-get update -qq && apt-get install -y -qq chromium >/dev/null; \
	else $(PY) -m pip install --quiet --constraint constraints.txt playwright && $(PY) -m playwright install chromium; fi

clean: ## remove .venv and caches; runs/ and build/ stay
	rm -rf .venv .pytest_cache .ruff_cache src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first: accelerate and peft ask for any torch, and the newest one brings gigabytes of CUDA packages.
# From an index of its own it comes alone, and what it depends on comes from pip's index, under the same constraints.
$(STAMP): constraints.txt pyproject.toml $(if $(OTHER_TORCH),force) | $(PY)
	$(if $(OTHER_TORCH),$(PY) -m pip uninstall --yes --quiet torch)
	$(PY) -m pip install --constraint constraints.txt $(if $(TORCH_INDEX),--no-deps --index-url "$(TORCH_INDEX)") torch
	$(PY) -m pip install --constraint constraints.txt --editable ".[dev]"
	@echo "$(TORCH_INDEX)" > $(STAMP)

$(PY):
	@command -v "$(PYTHON)" >/dev/null || \
		{ echo "error: there is no $(PYTHON); name a Python of 3.11 or newer: make install PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: $(PYTHON) is Python %d.%d, but 3.11 or newer is needed; name one: make install PYTHON=python3.12" % sys.version_info[:2])'
	@"$(PYTHON)" -m venv .venv || { rm -rf .venv; \
		echo "error: $(PYTHON) cannot make .venv; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
