# `make help` lists the targets. Needs Python 3.11 or newer, and a network for the first installation.
# GNU make 3.81 (macOS) is enough. Paths are relative and tools run as modules, so folders may have spaces in their names.

PYTHON ?= python3
ARGS ?=

PY := .venv/bin/python
STAMP := .venv/.installed
# The index that torch was installed from, empty for pip's own. The stamp remembers it; another index reinstalls torch.
INSTALLED_INDEX := $(shell cat $(STAMP) 2>/dev/null)
TORCH_INDEX ?= $(INSTALLED_INDEX)
ifneq ($(TORCH_INDEX),$(INSTALLED_INDEX))
OTHER_TORCH := yes
endif

# pip would compile the modules one after the other; here all cores do. Left uncompiled, they are compiled again at every
# start where PYTHONDONTWRITEBYTECODE is set, as in many containers. A file for a later Python (torch has one) is no error.
PIP_INSTALL := $(PY) -m pip install --no-compile --constraint constraints.txt
COMPILE := $(PY) -m compileall -qq -j 0 .venv/lib src || :

# Up to four workers with one thread each: the tests train many tiny models, none of which can use a second core.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal --durations=10

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo lint test test-all docs bench browser clean force

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

install: $(STAMP) ## make .venv with the exact versions of constraints.txt; TORCH_INDEX=URL for another build of torch

demo: $(STAMP) ## train the built-in model and compare it with its base; ARGS="--seed 1" passes options on
	$(PY) -m customized_grpo demo $(ARGS)

lint: $(STAMP) ## check style and types
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m pyright

test: lint ## check style and types, then run the tests that take seconds
	$(PYTEST) -m "not slow" $(ARGS)

test-all: lint browser ## the same with the slow tests; installs what they need, Chromium included
	$(PIP_INSTALL) --quiet --editable ".[dev,browser,datasets,notebook,studio,docs]"
	$(COMPILE)
	$(PYTEST) $(ARGS)

docs: $(STAMP) ## build the documentation as a site in build/docs; a link that leads nowhere is an error
	$(PIP_INSTALL) --quiet --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict $(ARGS)

bench: $(STAMP) ## time training on two free cores, in minutes; a table, and figures and a picture in build/bench
	OMP_NUM_THREADS=1 $(PY) benchmarks/bench.py $(ARGS)

# Chromium from the system's packages if this user may install them, otherwise Playwright's own.
browser: $(STAMP)
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
	then apt-get update -qq && apt-get install -y -qq chromium >/dev/null; \
	else $(PIP_INSTALL) --quiet playwright && $(PY) -m playwright install chromium; fi

clean: ## remove .venv and caches, but not runs/ and build/
	rm -rf .venv .pytest_cache .ruff_cache src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch is installed first: accelerate and peft accept any torch, and the newest brings gigabytes of CUDA packages.
# From its own index it is installed without dependencies; those come from pip's index, under the same constraints.
$(STAMP): constraints.txt pyproject.toml $(if $(OTHER_TORCH),force) | $(PY)
	$(if $(OTHER_TORCH),$(PY) -m pip uninstall --yes --quiet torch)
	$(PIP_INSTALL) $(if $(TORCH_INDEX),--no-deps --index-url "$(TORCH_INDEX)") torch
	$(PIP_INSTALL) --editable ".[dev]"
	$(COMPILE)
	@echo "$(TORCH_INDEX)" > $(STAMP)

$(PY):
	@command -v "$(PYTHON)" >/dev/null || \
		{ echo "error: $(PYTHON) was not found; name a Python 3.11 or newer: make install PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: $(PYTHON) is Python %d.%d, and 3.11 or newer is needed: make install PYTHON=python3.12" % sys.version_info[:2])'
	@"$(PYTHON)" -m venv .venv || { rm -rf .venv; \
		echo "error: $(PYTHON) cannot create .venv; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
