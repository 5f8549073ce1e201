# The two commands of the README are `make demo` and `make test`; CI runs `make check`.
SHELL := /bin/bash
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=
WORKERS ?= 2

help:  ## show this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(READY)  ## play the main job on this machine: collector, agent, simulated devices, a story
	@$(BIN)/tocsin demo $(ARGS)

test: $(READY) debian-test  ## all the set-up, then every test of the first tier (<= 8 min)
	$(BIN)/pytest -q -n $(WORKERS) --dist loadgroup -m "not soak and not check and not browser" $(ARGS)

check: lint types test debian-check  ## what CI runs: lint, types, tests, sampled seeds, browser, headless demo (<= 25 min)
	$(BIN)/pytest -q -n $(WORKERS) --dist loadgroup -m "(check or browser) and not soak"
	$(BIN)/python scripts/proto.py --check
	@$(BIN)/tocsin demo --headless --seconds 90 --json

soak: $(READY) debian-test  ## full counts; write the result into bench/SOAK.md
	$(BIN)/python -m bench.soak $(ARGS)

bench: $(READY)  ## every benchmark, quick; `make bench ARGS=e2e` for one
	@$(BIN)/python -m bench $(or $(ARGS),all --quick) --json

lint: $(READY)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## mypy --strict
	$(BIN)/mypy

proto: $(READY)  ## generate the wire code again (its own small environment)
	$(BIN)/python scripts/proto.py

lock: $(READY)  ## resolve requirements/dev.txt again
	$(PYTHON) scripts/lock.py

clean:  ## remove what the targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .demo build dist

debian-test debian-check: debian-%:
	@scripts/debian.sh $*

$(READY): requirements/dev.txt pyproject.toml
	@echo "setting up $(VENV) (once, about half a minute)" >&2
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -qq --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(READY)

.PHONY: help demo test check soak bench proto lock lint types clean debian-test debian-check
