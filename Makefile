PYTHON ?= python3
ARGS ?=
MINUTES ?= 10
SEED ?=

VENV := .venv
VENV_PSYCOPG3 := .venv-psycopg3
VENV_DOCS := .venv-docs
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
CONTRACTS := tests/test_environment.py tests/contracts
PER_DRIVER := $(CONTRACTS) tests/test_driver.py tests/test_outages.py tests/capture
SHARED := -n 2 --dist worksteal
PG_BINS := $(patsubst %/initdb,%,$(wildcard /usr/lib/postgresql/*/bin/initdb))

CHECK_PYTHON := import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")
WITHOUT_PSYCOPG2 := import tomllib; \
	project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	extras = project["optional-dependencies"]; \
	needed = project["dependencies"] + extras["dev"] + extras["psycopg3"]; \
	print(*(line for line in needed if "psycopg2" not in line), sep="\n")

# Each of the many processes of a run would compile again what it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-matrix test-versions soak proof lint bench docs clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/installed ## run an example and check every result: flights (ARGS="--relay nats" ends in JetStream), or ARGS="bank"
	$(VENV)/bin/python examples/demo.py $(ARGS)

test: $(VENV)/installed ## run all tests, with psycopg2 (ARGS="-k horizon" chooses)
	OUTBOX_TEST_DRIVER=psycopg2 $(VENV)/bin/python -m pytest $(SHARED) $(ARGS)

test-long: $(VENV)/installed ## run all tests with the long forms of their proofs, about an hour
	OUTBOX_TEST_LONG=1 OUTBOX_TEST_DRIVER=psycopg2 $(VENV)/bin/python -m pytest $(SHARED) $(ARGS)

test-matrix: $(VENV)/installed $(VENV_PSYCOPG3)/installed ## what depends on the driver with psycopg 3, and the contracts on the system's PostgreSQL
	env -u DATABASE_URL OUTBOX_TEST_DRIVER=psycopg $(VENV_PSYCOPG3)/bin/python -m pytest $(SHARED) $(PER_DRIVER) $(ARGS)
	@set -e; for bin in $(PG_BINS); do \
		version=$$(basename $$(dirname $$bin)); \
		for pair in psycopg2:$(VENV) psycopg:$(VENV_PSYCOPG3); do \
			echo "PostgreSQL $$version, $${pair%%:*}"; \
			env -u DATABASE_URL OUTBOX_PG_BIN=$$bin OUTBOX_TEST_SERVER=$$version OUTBOX_TEST_DRIVER=$${pair%%:*} \
				$${pair#*:}/bin/python -m pytest $(SHARED) $(CONTRACTS) $(ARGS); \
		done; \
	done

test-versions: ## the contracts and the first mistakes with each Python and Django that this machine has (ARGS="3.13:6.1")
	$(PYTHON) tests/versions.py $(ARGS)

soak: $(VENV)/installed ## torture real processes for MINUTES=10, by the dice of SEED, and check what they did
	$(VENV)/bin/python -m tests.soak --minutes $(MINUTES) --seed "$(SEED)"

proof: ## search the models of the protocols whole, and find a counterexample for each mutant (ARGS=--traces)
	$(PYTHON) -m tests.model $(ARGS)

lint: $(VENV)/installed ## check format, style, types and the direction of imports
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/installed ## measure, each figure beside its floor
	$(VENV)/bin/python -m benchmarks $(ARGS)

docs: $(VENV)/installed $(VENV_DOCS)/installed ## write what the pages show of the code, check their links, and build the site into site/
	$(VENV)/bin/python docs/settings_table.py
	$(VENV)/bin/python docs/reference.py
	$(PYTHON) docs/check_links.py
	NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/bin/mkdocs build --strict --quiet

clean: ## delete the environments and everything that was built
	rm -rf $(VENV) $(VENV_PSYCOPG3) $(VENV_DOCS) .venv-versions build dist site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c '$(CHECK_PYTHON)'
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python $(PIP_INSTALL) --editable '.[dev]'
	@touch $@

# Django takes psycopg 3 wherever it is installed, so each driver has an environment without the other.
$(VENV_PSYCOPG3)/installed: pyproject.toml
	@$(PYTHON) -c '$(CHECK_PYTHON)'
	$(PYTHON) -m venv --clear $(VENV_PSYCOPG3)
	$(PYTHON) -c '$(WITHOUT_PSYCOPG2)' > $(VENV_PSYCOPG3)/requirements.txt
	$(VENV_PSYCOPG3)/bin/python $(PIP_INSTALL) --requirement $(VENV_PSYCOPG3)/requirements.txt
	$(VENV_PSYCOPG3)/bin/python $(PIP_INSTALL) --no-deps --editable .
	@touch $@

$(VENV_DOCS)/installed: pyproject.toml
	@$(PYTHON) -c '$(CHECK_PYTHON)'
	$(PYTHON) -m venv --clear $(VENV_DOCS)
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' > $(VENV_DOCS)/requirements.txt
	$(VENV_DOCS)/bin/python $(PIP_INSTALL) --requirement $(VENV_DOCS)/requirements.txt
	@touch $@
