# Everything here needs Python 3.11 or newer and make; the rest is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet

.PHONY: help demo test test-all lint counted bench screenshots chaos chaos-controls mutants lock clean
.DELETE_ON_ERROR:
# Tests start hundreds of processes.
unexport PYTHONDONTWRITEBYTECODE

help: ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

demo: .venv/runtime ## the whole way once; KEEP=1 leaves it running
	$(BIN)/receiver demo $(if $(KEEP),--keep)

test: lint ## linters and tests, within five minutes of two processors; ARGS may name files
	$(BIN)/python tests/debian.py
	TESTS=$${TESTS:-quick} $(BIN)/python -m pytest -m "not slow" $(ARGS)

test-all: lint ## all tests, PostgreSQL 15 too, and how much of the code they reach
	$(BIN)/python tests/debian.py
	$(BIN)/coverage erase
	$(MAKE) counted

counted:
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: .venv/dev ## style, types, who imports whom, common weaknesses
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive receiver

# Needs Debian's wrk; what else is missing is named in the table. See tests/tools/bench/run.py.
bench: .venv/dev ## how fast it is, beside others
	$(BIN)/python tests/tools/bench/run.py $(ARGS)

# Needs Debian's chromium; pngquant makes the files small. See tests/http/dashboard/screenshots.py.
screenshots: .venv/dev ## the pictures of docs/screenshots
	$(BIN)/python tests/http/dashboard/screenshots.py

# Needs Debian's nginx-light and strace; what else is missing is named. See tests/tools/chaos/run.py.
chaos: .venv/dev ## kills, freezes and starves it under load; SIZE=small is what CI runs
	$(BIN)/python tests/tools/chaos/run.py $(if $(SIZE),--size $(SIZE)) $(ARGS)

chaos-controls: .venv/dev ## whether the harness notices broken builds
	$(BIN)/python tests/tools/chaos/run.py --controls-only $(ARGS)

# Changes the core in one place at a time; about half an hour of four processors. ARGS may name modules.
mutants: .venv/dev ## whether tests notice each change of the core
	$(BIN)/python tests/tools/mutants/run.py $(ARGS)

# The locks hold hashes and no addresses, so that any index can serve them.
lock: .venv/dev ## newer versions of what is pinned
	$(BIN)/uv pip compile pyproject.toml --extra build --extra gevent --universal --python-version 3.11 --upgrade \
	  --generate-hashes --no-header --no-annotate --no-emit-index-url --output-file deploy/requirements.txt
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate --no-emit-index-url --constraint deploy/requirements.txt \
	  --output-file tests/requirements.txt

.venv/made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	touch $@

.venv/runtime: .venv/made deploy/requirements.txt pyproject.toml
	$(PIP) install --require-hashes --requirement deploy/requirements.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@

.venv/dev: .venv/runtime tests/requirements.txt
	$(PIP) install --require-hashes --requirement tests/requirements.txt
	touch $@

clean: ## away with .venv and what was measured
	rm -rf .venv .coverage* .hypothesis build *.egg-info
