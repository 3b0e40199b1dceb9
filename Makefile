# evenbench: every target installs what it needs on a fresh machine with Python and make.
#
#   make bench PYTHON=python3.12     use another interpreter for .venv
#   make test ARGS="-k parity -x"    pass arguments to pytest
#
# .venv/.whole marks a complete installation. If one is interrupted (Ctrl-C, a lost connection, a crash), the mark is
# missing and the next call starts with an empty environment. The stamps record which extras are installed.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && exit; done; echo python3)
SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
ARGS ?=
BIN := .venv/bin

.PHONY: help bench test test-all lint format overhead wheel clean
.NOTPARALLEL:

help:
	@echo 'make bench     train every architecture in every framework and print the leaderboard'
	@echo 'make test      run the tests: about 10 minutes on two cores'
	@echo 'make test-all  run the tests and their exhaustive matrices: about 30 minutes'
	@echo 'make lint      check the code with ruff and mypy'
	@echo 'make format    format and fix the code with ruff'
	@echo 'make overhead  run the benchmarks of evenbench itself (tests/bench)'
	@echo 'make wheel     build the wheel and the source archive in dist/'
	@echo 'make clean     remove .venv, builds and caches (results are kept)'

bench: .venv/.stamp-run
	@$(BIN)/evenbench experiment=bench model=fnn data=breast_cancer
	@$(BIN)/evenbench experiment=bench

# One pytest worker runs all tests of a file (loadfile), so that they share processes and results folders.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

test: .venv/.stamp-dev
	@$(PYTEST) $(ARGS)

test-all: .venv/.stamp-dev
	@$(PYTEST) -m 'not bench' $(ARGS)

lint: .venv/.stamp-dev
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: .venv/.stamp-dev
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

overhead: .venv/.stamp-dev
	@$(BIN)/python -m pytest -m bench -s tests/bench $(ARGS)

wheel: .venv/.stamp-dev
	@$(BIN)/python -m build --no-isolation

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache

# $(call install,extras,stamps)
define install
	@if [ ! -e .venv/.whole ] || [ ! -x $(BIN)/python ]; then \
		$(PYTHON) -c '$(SUPPORTED)' || { \
			echo "evenbench needs Python 3.11, 3.12 or 3.13; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)" >&2; \
			echo "Choose another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }; \
		rm -rf .venv && $(PYTHON) -m venv .venv; \
	fi && \
	rm -f .venv/.whole .venv/.stamp-* && \
	echo 'Installing evenbench[$(1)] into .venv. This takes a few minutes the first time.' && \
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$(1)]' && \
	touch .venv/.whole $(2)
endef

.venv/.stamp-dev: pyproject.toml constraints.txt
	$(call install,jax$(,)data$(,)dev,.venv/.stamp-run $@)

.venv/.stamp-run: pyproject.toml constraints.txt
	$(call install,jax,$@)

, := ,
