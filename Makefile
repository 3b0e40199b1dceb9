# evenbench: `make bench` and `make test` each do all they need on a fresh machine with Python and make.
#
#   make bench PYTHON=python3.12     another interpreter for .venv
#   make test ARGS="-k parity -x"    more arguments for pytest
#
# .venv/.whole says that no installation is under way: whatever stopped one (Ctrl-C, a lost connection, a crash), the
# next call finds the mark missing and starts from an empty environment. The stamps say which extras are in.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && exit; done; echo python3)
SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
ARGS ?=
BIN := .venv/bin

.PHONY: help bench test overhead lint format wheel clean
.NOTPARALLEL:

help:
	@echo 'make bench     train every architecture in every framework, print the leaderboard'
	@echo 'make test      run the whole test suite'
	@echo 'make overhead  run the benchmarks of the harness itself (tests/bench)'
	@echo 'make lint      ruff and mypy'
	@echo 'make format    let ruff format and fix the code'
	@echo 'make wheel     build the wheel and the source archive into dist/'
	@echo 'make clean     remove .venv, builds and caches (results stay)'

bench: .venv/.stamp-run
	@$(BIN)/evenbench experiment=bench model=fnn data=breast_cancer
	@$(BIN)/evenbench experiment=bench

# Files stay together (loadfile), so that each worker imports TensorFlow for the files it got and not for every test;
# they are begun in the order of tests/conftest.py, which is that of their time, and not of their number of tests.
test: .venv/.stamp-dev
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

overhead: .venv/.stamp-dev
	@$(BIN)/python -m pytest -m bench -s tests/bench $(ARGS)

lint: .venv/.stamp-dev
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: .venv/.stamp-dev
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

wheel: .venv/.stamp-dev
	@$(BIN)/python -m build --no-isolation

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache

# $(call install,extras,stamps)
define install
	@if [ ! -e .venv/.whole ] || [ ! -x $(BIN)/python ]; then \
		$(PYTHON) -c '$(SUPPORTED)' || { \
			echo "evenbench needs Python 3.11, 3.12 or 3.13; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)" >&2; \
			echo "Name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }; \
		rm -rf .venv && $(PYTHON) -m venv .venv; \
	fi && \
	rm -f .venv/.whole .venv/.stamp-* && \
	echo 'Installing evenbench[$(1)] into .venv. The first time this takes some minutes.' && \
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$(1)]' && \
	touch .venv/.whole $(2)
endef

.venv/.stamp-dev: pyproject.toml constraints.txt
	$(call install,jax$(,)data$(,)dev,.venv/.stamp-run $@)

.venv/.stamp-run: pyproject.toml constraints.txt
	$(call install,jax,$@)

, := ,
