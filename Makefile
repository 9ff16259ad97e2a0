# Everything from a fresh clone: make demo, make test. Needs Python 3.11 and make only.
PYTHON := $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test faults lint clean

install: $(STAMP)

# Installed anew whenever the pinned versions or the project's own metadata change.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "make: Python 3.11 is needed; found none in PATH" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

demo: $(STAMP)
	$(BIN)/sweeps run quickstart

# Two at a time where tests are of one thread; clusters of several processes one after another.
test: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not cluster and not faults"
	$(BIN)/python -m pytest -m "cluster and not faults"

faults: $(STAMP)
	$(BIN)/python -m pytest -m "" tests/cluster/test_faults.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) results
