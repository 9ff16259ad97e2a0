# Everything from a fresh clone: make demo, make test. Needs make and a Python: 3.11, 3.12 or 3.13.
# `make demo PYTHON=python3.12` chooses it; without, install/choose.py does, and says how much it downloads.
PYTHON :=
VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.installed
DEVELOP := $(VENV)/.developing
# Whatever Python there is, to look for the right one; the names of Pythons that do not run are passed over.
ANY := $(shell for p in python3 python3.13 python3.12 python3.11 python; do $$p -c '' 2>/dev/null && echo $$p && break; done)
INSTALL = $(or $(ANY),$(error no Python in PATH: 3.11, 3.12 or 3.13 is needed)) install/install.py --venv $(VENV) --python "$(PYTHON)"

.PHONY: install develop demo results test faults lint check-locks clean

install: $(RUN)

develop: $(DEVELOP)

# Installed anew whenever the pinned versions or the project's own metadata change, or another Python is asked for.
$(RUN): requirements.lock pyproject.toml $(if $(PYTHON),FORCE)
	@$(INSTALL) --lock requirements.lock
	@touch $@

$(DEVELOP): requirements.lock requirements-dev.lock pyproject.toml $(if $(PYTHON),FORCE)
	@$(INSTALL) --lock requirements-dev.lock
	@touch $(RUN) $@

FORCE:

demo: $(RUN)
	$(BIN)/sweeps run quickstart

# Tables and pictures of docs/results.md, from the rows in docs/data.
results: $(RUN)
	$(BIN)/python benchmarks/results.py

# Two at a time where tests are of one thread; clusters of several processes one after another.
test: $(DEVELOP) lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not cluster and not faults"
	$(BIN)/python -m pytest -m "cluster and not faults"

faults: $(DEVELOP)
	$(BIN)/python -m pytest -m "" tests/cluster/test_faults.py

lint: $(DEVELOP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Do both locks resolve on every Python? Downloads what pip has not kept; installs nothing.
check-locks:
	@$(ANY) install/locks.py

clean:
	rm -rf $(VENV) results
