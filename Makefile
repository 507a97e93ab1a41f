# Everything runs in a locked environment in .venv, made by a uv that is bootstrapped into .uv.
PYTHON ?= python3
# The machine's own trust store, where it has one, decides whose downloads are trusted, as for every other program.
UV := .uv/bin/uv $(if $(wildcard /etc/ssl/certs/ca-certificates.crt),--system-certs)
UV_FILE := .uv/bin/uv
BIN := .venv/bin
STAMP := .venv/.installed
FLEET ?= sim

# Where it is set, each of the many processes of a test would compile the code again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install lock check test test-lab lab-host soak bench demo agent clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(UV_FILE):
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --require-hashes --only-binary :all: -r requirements/uv.txt

$(STAMP): $(UV_FILE) requirements/dev.txt pyproject.toml
	test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) .venv
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements/dev.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

install: $(STAMP) ## the locked environment in .venv

lock: $(UV_FILE) ## new lock files from pyproject.toml
	$(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 pyproject.toml -o requirements/run.txt
	$(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 pyproject.toml --group dev -c requirements/run.txt -o requirements/dev.txt
	$(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 agent/pyproject.toml -c requirements/run.txt -o requirements/agent.txt
	echo uv | $(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 - -o requirements/uv.txt

check: $(STAMP) ## format, lint, types, import contract, YAML, Ansible, shell
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	PYTHONPATH=agent $(BIN)/lint-imports --no-logo
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/yamllint --strict .
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/ansible-lint --offline --profile production --strict -q
	$(BIN)/shellcheck .ci/run

test: $(STAMP) ## in seconds to minutes, with no network, no root and no service
	$(BIN)/pytest -n 4 -m "not lab and not soak" tests/unit tests/cases

ifeq ($(shell id -u),0)
test-lab: $(STAMP) lab-host ## the parts together: real Prefect, Ansible, containers, databases, executors killed; one cell of each matrix (root on Debian)
	$(BIN)/pytest -n 2 --timeout 180 --database-server mariadb tests/unit/state
	$(BIN)/pytest -n 2 --timeout 180 --database-server postgresql tests/unit/state
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not soak" tests/integration tests/e2e tests/lab
	$(BIN)/pytest -n 2 -m "not soak" tests/simulation
else
test-lab: $(STAMP)
	@echo "make test-lab: not root: without real containers and databases (root on Debian: what they need is installed, and they are tested, too)"
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not soak and not lab" tests/integration tests/e2e
	$(BIN)/pytest -n 2 -m "not soak" tests/simulation
endif

lab-host: $(STAMP) ## what real containers and databases need on this machine (root on Debian)
	LC_ALL=C.UTF-8 $(BIN)/ansible-playbook -i localhost, -c local playbooks/lab.yml

soak: $(STAMP) ## what is too long for every change
	$(BIN)/pytest -m soak tests

bench: $(STAMP) ## measurements, as JSON and as a table
	$(BIN)/python -m tests.bench

demo: $(STAMP) ## the whole system, broken and healed before your eyes
	$(BIN)/zlh demo --fleet $(FLEET)

agent: $(STAMP) ## the agent as one file, in dist
	$(BIN)/python agent/build.py --output dist

clean: ## removes the environment and run-time state
	rm -rf .venv .uv var dist
