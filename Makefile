# The commands that a person types. On a fresh machine `make demo` needs only Python 3.12 or newer.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install demo up env check test test-on-sqlite test-on-postgresql proof bench bench-llm lint lock clean

VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := docker/requirements
# Print the newest Python that runs the control plane and can make an environment that has pip.
FIND_PYTHON = for candidate in python3.14 python3.13 python3.12 /usr/bin/python3 python3; do \
	"$$candidate" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo "$$candidate" && break; done
# A checksum of the files that decide what is installed. `install` does nothing while it is unchanged.
STAMP = $$(cat $(REQUIREMENTS)/dev.txt pyproject.toml | cksum)

help:
	@echo 'make install   create $(VENV) and install the pinned requirements'
	@echo 'make demo      show one limit that holds over three proxies'
	@echo 'make up        run the whole platform on this machine'
	@echo 'make env       print the address of the store of `make up`, with its password, for a shell'
	@echo 'make check     lint and run the fast tests; use it while you work'
	@echo 'make test      run every test, on SQLite and on PostgreSQL; use it before you push'
	@echo 'make proof     run the costly tests with full numbers, up to an hour; use it before a release'
	@echo 'make bench     measure decisions, side by side with other libraries'
	@echo 'make bench-llm measure our proxy for models, side by side with that of LiteLLM'
	@echo 'make lint      check style, types, imports and tracked files'
	@echo 'make lock      resolve and pin the requirements again'
	@echo 'make clean     remove $(VENV), caches and var/ (the data of `make up`)'

# Two commands at once install once (where there is flock). An environment whose making was interrupted is made again.
# Compiling every module of every package would take longer than all else. Python compiles those that are imported.
install:
	@if [ "$$(cat $(VENV)/stamp 2>/dev/null)" = "$(STAMP)" ]; then exit 0; fi; \
	exec 9<Makefile; if command -v flock >/dev/null; then flock 9; fi; \
	if [ "$$(cat $(VENV)/stamp 2>/dev/null)" = "$(STAMP)" ]; then exit 0; fi; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		python=$$($(FIND_PYTHON)); \
		if [ -z "$$python" ]; then \
			echo 'Sluicegate needs Python 3.12 or newer with venv (Debian, Ubuntu: apt-get install python3-venv).' >&2; exit 1; \
		fi; \
		echo "Making $(VENV) with $$("$$python" --version)"; \
		"$$python" -m venv --clear $(VENV); \
	fi; \
	echo 'Installing the pinned requirements'; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r $(REQUIREMENTS)/dev.txt; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .; \
	echo "$(STAMP)" > $(VENV)/stamp

demo: install
	@$(BIN)/python manage.py demo

# No prerequisite: `eval "$(make -s env)"` prints nothing but the environment.
env:
	@$(BIN)/python manage.py env

up: install
	@$(BIN)/python manage.py up

# More workers than cores, because tests mostly wait for servers. Each takes whole files, because the tests of a file share
# servers, and the longest files come first. Bytecode is kept, also where the environment forbids it: without it, each
# worker rewrites the assertions of all tests, and each process compiles all modules. On PostgreSQL run few tests, so that
# one worker ends before the others.
WORKERS := 6
PYTEST := env PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# The list of fast files is tests/fast.txt; `make test` keeps it up to date. They hardly wait, so that more workers than
# cores would only start more processes.
check: lint
	env -u DATABASE_URL $(PYTEST) -n auto --maxprocesses $(WORKERS) --fast

# Tests of the demo and in tests/controlplane/stack create databases of their own, so they do not run on PostgreSQL again.
# Neither do those with a browser: a page is the same whatever the database, and the queries behind it have tests without one.
ON_POSTGRESQL := $(BIN)/python -m tests.postgres $(PYTEST) --no-browser
SQLITE_ALONE := $(shell grep -v '^\#' tests/sqlite.txt)

# In a fresh checkout, all workers would begin at once to rewrite the assertions of all tests, each by itself. So two
# processes, with half of the tests each, do it before. Then both databases at once: each run waits for servers a good part
# of its time. The output of the shorter one comes when it ends.
COLLECT := env PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q --collect-only
test: install
	@test -d tests/controlplane/__pycache__ || { $(COLLECT) tests/controlplane & \
		$(COLLECT) --ignore=tests/controlplane; wait; } >/dev/null
	@$(MAKE) --no-print-directory --jobs=2 test-on-sqlite test-on-postgresql

test-on-sqlite:
	env -u DATABASE_URL $(PYTEST) --ask-again --update-tiers

test-on-postgresql:
	@mkdir -p var; status=0; echo '$@: see var/$@.log'; \
	$(ON_POSTGRESQL) -n 1 --ask-again tests/controlplane --ignore=tests/controlplane/demo --ignore=tests/controlplane/stack \
		$(foreach name,$(SQLITE_ALONE),$(if $(findstring ::,$(name)),--deselect,--ignore)=$(name)) \
		>var/$@.log 2>&1 || status=$$?; \
	cat var/$@.log; exit $$status

proof: install
	env -u DATABASE_URL $(PYTEST) --proof -m proof
	$(ON_POSTGRESQL) $(SQLITE_ALONE) tests/enforcement/cli/remote

bench: install
	@$(BIN)/python -m benchmarks

bench-llm: install
	@$(BIN)/python -m benchmarks llm

# Two checks take seconds whatever has changed, so they are left out while what they depend on is as it was when they
# passed. Ruff and mypy have caches of their own.
UNCHANGED := $(BIN)/python -m tests.unchanged
lint: export PYTHONDONTWRITEBYTECODE =
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.toml
	$(UNCHANGED) imports enforcement controlplane benchmarks pyproject.toml -- $(BIN)/lint-imports
	$(BIN)/python -m tests.repository
	$(BIN)/python -m tests.house
	$(UNCHANGED) openapi enforcement controlplane templates tests/openapi.py tests/openapi.json tests/openapi_breaking.txt \
		tests/repository.py tests/settings.py -- $(BIN)/python -m tests.openapi

# Each file serves every platform and Python version. The smaller files take their versions from dev.txt.
RESOLVE = var/lock/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --no-annotate
COMPILE = $(RESOLVE) pyproject.toml
# A group alone, for an environment that tests make under var/.
COMPILE_GROUP = $(RESOLVE) --python-version 3.12 --group
lock:
	@test -x var/lock/bin/uv || { python=$$($(FIND_PYTHON)); "$$python" -m venv var/lock; var/lock/bin/pip install --quiet 'uv>=0.13,<1'; }
	$(COMPILE) --python-version 3.12 --all-extras --group dev -o $(REQUIREMENTS)/dev.txt
	$(COMPILE) --python-version 3.12 --extra controlplane --extra embedded -c $(REQUIREMENTS)/dev.txt -o $(REQUIREMENTS)/controlplane.txt
	$(COMPILE) --python-version 3.11 --extra proxy --extra service -c $(REQUIREMENTS)/dev.txt -o $(REQUIREMENTS)/proxy.txt
	for extra in flask starlette; do \
		$(COMPILE) --python-version 3.11 --extra $$extra -c $(REQUIREMENTS)/dev.txt -o $(REQUIREMENTS)/$$extra.txt; done
	$(COMPILE) --python-version 3.11 -c $(REQUIREMENTS)/dev.txt -o $(REQUIREMENTS)/base.txt
	for group in clients envoy litellm metering protobuf proxies sdks; do \
		$(COMPILE_GROUP) $$group -c $(REQUIREMENTS)/dev.txt -o $(REQUIREMENTS)/$$group.txt; done

clean:
	rm -rf $(VENV) var build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
