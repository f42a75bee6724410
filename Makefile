# The commands a person types. `make demo` on a fresh machine needs a Python >= 3.12 and nothing else.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install demo up test bench lint lock clean

VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := docker/requirements
# The newest Python that the control plane runs on and that can make an environment with pip in it.
FIND_PYTHON = for candidate in python3.14 python3.13 python3.12 /usr/bin/python3 python3; do \
	"$$candidate" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo "$$candidate" && break; done
# What decides the contents of the environment; `install` has nothing to do while it is as it was.
STAMP = $$(cat $(REQUIREMENTS)/dev.txt pyproject.toml | cksum)

help:
	@echo 'make install   prepare $(VENV)'
	@echo 'make demo      see one limit hold over three proxies'
	@echo 'make up        run the whole platform on this machine'
	@echo 'make test      run every test, on SQLite and on PostgreSQL'
	@echo 'make bench     measure decisions beside their peers'
	@echo 'make lint      style, types, imports'
	@echo 'make lock      pin the requirements anew'
	@echo 'make clean     remove $(VENV), caches and var/ (data of the embedded stack)'

install:
	@if [ "$$(cat $(VENV)/stamp 2>/dev/null)" = "$(STAMP)" ]; then exit 0; fi; \
	if [ ! -x $(BIN)/python ]; then \
		python=$$($(FIND_PYTHON)); \
		if [ -z "$$python" ]; then \
			echo 'Sluicegate needs Python 3.12 or newer with venv (Debian, Ubuntu: apt-get install python3-venv).' >&2; exit 1; \
		fi; \
		echo "Making $(VENV) with $$("$$python" --version)"; \
		"$$python" -m venv $(VENV); \
	fi; \
	echo 'Installing the pinned requirements'; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(REQUIREMENTS)/dev.txt; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .; \
	echo "$(STAMP)" > $(VENV)/stamp

demo: install
	@$(BIN)/python manage.py demo

up: install
	@$(BIN)/python manage.py up

# By file, since the tests of one share costly servers; in the order of collection, in which browsers come last.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder
# The stack's tests bring their own databases: once is enough for them.
test: install
	env -u DATABASE_URL $(PYTEST)
	$(BIN)/python -m tests.postgres $(PYTEST) tests/controlplane --ignore=tests/controlplane/stack

bench: install
	@$(BIN)/python -m benchmarks

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.repository
	$(BIN)/python -m tests.house

# A universal lock: one file for every platform and Python. The smaller files take their versions from dev.txt.
COMPILE = var/lock/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --no-annotate pyproject.toml
lock:
	@test -x var/lock/bin/uv || { python=$$($(FIND_PYTHON)); "$$python" -m venv var/lock; var/lock/bin/pip install --quiet 'uv>=0.13,<1'; }
	$(COMPILE) --python-version 3.12 --extra dev -o $(REQUIREMENTS)/dev.txt
	$(COMPILE) --python-version 3.12 --extra controlplane --extra embedded -c $(REQUIREMENTS)/dev.txt -o $(REQUIREMENTS)/controlplane.txt
	$(COMPILE) --python-version 3.11 --extra proxy -c $(REQUIREMENTS)/dev.txt -o $(REQUIREMENTS)/proxy.txt
	$(COMPILE) --python-version 3.11 -c $(REQUIREMENTS)/dev.txt -o $(REQUIREMENTS)/base.txt

clean:
	rm -rf $(VENV) var build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
