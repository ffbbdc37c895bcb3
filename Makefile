# callrouter: everything starts here. `make` alone lists the targets; each sets up what it needs.
PYTHON ?= python3
DRAIN ?= 10
MINUTES ?= 2
SEED ?= 112
WORKERS ?= 3
DATABASE ?= sqlite
ROUNDS ?= 4
CALLS ?= 100
HOURS ?= 8
VENV := .venv/.complete
BENCH := .venv/.bench-complete
PREFIX := .runtime/asterisk/.complete
PROMPTS := .runtime/prompts/.complete
ifdef ASTERISK
export ASTERISK
endif

.PHONY: help demo up down status test chaos load baseline bench scale soak lint docs setup
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup  ## the main job, live: callers ring 112, operators answer, tickets are checked (KEEP=1 leaves it running)
	@.venv/bin/python -m tools.demo

up: setup  ## start the stack in the background; returns when it is ready
	@.venv/bin/python -m tools.stack up

down: $(VENV)  ## refuse new calls, let those inside end for DRAIN=10 seconds, then stop the stack
	@.venv/bin/python -m tools.stack down --drain $(DRAIN)

status: $(VENV)  ## what runs, since when, and whether it is ready
	@.venv/bin/python -m tools.stack status

test: setup $(BENCH)  ## all tests, on the real Asterisk, PostgreSQL and SIPp; most wait for calls, so WORKERS=3 do so side by side
	@.venv/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

chaos: setup  ## random faults under calls for MINUTES=2, SEED=112, DATABASE=sqlite; every caller's record is held against the tickets
	@.venv/bin/python -m tests.chaos.storm --minutes $(MINUTES) --seed $(SEED) --database $(DATABASE)

load: setup  ## call TARGET=host:port as a city does: SHAPE=steady|launch|surge|tdos|long|lossy, RATE, CALLS, TALK (sipp-scenarios/README.md)
	@.venv/bin/python -m tools.load "$(or $(TARGET),127.0.0.1:5060)" --shape "$(or $(SHAPE),steady)" $(if $(CALLS),--calls $(CALLS)) $(if $(RATE),--rate $(RATE)) $(if $(TALK),--talk $(TALK))

baseline: setup  ## count the hot path anew (calls, memory); tests/unit/test_hot_path.py fails when it grows by a tenth
	@.venv/bin/python -m tools.baseline

bench: setup $(BENCH)  ## callrouter beside a native dialplan and others, ROUNDS=4 CALLS=100 (quick: ROUNDS=1 CALLS=20): var/bench/
	@.venv/bin/python -W ignore -m bench --rounds $(ROUNDS) --calls $(CALLS)

scale: setup $(BENCH)  ## what a call costs with more calls at once, more operators, more tickets: var/bench/
	@.venv/bin/python -W ignore -m bench.scale

soak: setup $(BENCH)  ## calls for HOURS=8 at a high rate: nothing may grow, every ticket must be right: var/bench/
	@.venv/bin/python -W ignore -m bench.soak --hours $(HOURS)

lint: $(VENV)  ## ruff (format and lint), mypy --strict
	@.venv/bin/ruff format --check -q . && .venv/bin/ruff check -q . && .venv/bin/mypy

docs: $(VENV)  ## write the generated pages of docs/ anew
	@.venv/bin/python -m tools.docs

setup: $(VENV) $(PREFIX) $(PROMPTS)  ## what all of them need: Python packages, Asterisk, SIPp, prompts

$(VENV): requirements.lock pyproject.toml
	@echo "set-up: Python packages (about a minute, once)" >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "set-up: Python 3.11 or newer is needed (this is $$($(PYTHON) -V))" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "set-up: the venv module is missing: apt-get install python3-venv" >&2; exit 1; }
	@.venv/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@.venv/bin/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(BENCH): $(VENV) requirements-bench.lock
	@echo "set-up: Python packages of the load test" >&2
	@.venv/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements-bench.lock
	@touch $@

$(PREFIX): tools/asterisk_prefix.sh tools/debian-packages.lock
	@bash tools/asterisk_prefix.sh .runtime/asterisk && touch $@

$(PROMPTS): $(VENV) $(PREFIX) profiles/ambon.toml profiles/kecil.toml callrouter/asterisk/prompts.py
	@.venv/bin/python -m tools.prompts && touch $@
