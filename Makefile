# `make demo` and `make test` are all a newcomer needs; both make their own virtual environment first.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
TYPING := .local/typing/celery_jobqueue
STAMP := $(VENV)/.installed
BENCHED := $(VENV)/.bench

.PHONY: help setup demo web test lint types tests faults soak fuzz clouds pythons upstream bench bulk bundle clean
help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## the virtual environment with pinned dependencies
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it with make PYTHON=…"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,certificates,fonts,signing,flower,web,test]'
	@touch $(STAMP)

demo: $(STAMP) ## certificates out of a queue, from nothing, in one command
	@$(BIN)/python -m tasks.demo

web: $(STAMP) ## the application's page and the one that verifies certificates, with a worker: http://127.0.0.1:8000
	@$(BIN)/python -m tasks.web --demo

test: lint types tests ## everything that CI runs

lint: $(STAMP)
	$(BIN)/ruff check .

# The folders are broker and db, the packages celery_jobqueue.broker and celery_jobqueue.db: mypy reads them through links.
types: $(STAMP)
	@mkdir -p $(TYPING) && ln -sfn ../../../broker $(TYPING)/broker && ln -sfn ../../../db $(TYPING)/db
	MYPYPATH=.local/typing:. $(BIN)/mypy -p celery_jobqueue.broker -p celery_jobqueue.db -p tasks

tests: $(STAMP)
	$(BIN)/python -m pytest -n logical --dist worksteal $(PYTEST)

faults: $(STAMP) ## kill, freeze, cut and fill up, and count what became of the jobs (FAULTS='killed_child --seed 7'; FAULTS=--list)
	@$(BIN)/python -m tests.faults $(FAULTS)

fuzz: $(STAMP) ## hostile messages and rows, for FUZZ=300 seconds (FUZZ='--seed 7')
	@$(BIN)/python -m tests.fuzz $(FUZZ)

clouds: $(STAMP) ## certificates in Azure's own emulator (needs npm, which fetches 374 packages into .local once)
	$(BIN)/python -m pytest tests/clouds/azurite.py

pythons: $(STAMP) ## the same certificates, byte for byte, from every Python ≥ 3.11 on this machine
	@$(BIN)/python -m tests.pythons

soak: $(STAMP) ## a million jobs beside a killer, memory and sizes, and the cost of an idle worker (SOAK='--jobs 100000')
	@$(BIN)/python -m tests.faults.soak $(SOAK)

upstream: $(STAMP) ## Celery's and kombu's own suites against us (half an hour; needs redis-server; UPSTREAM='--pool threads test_tasks.py')
	@$(BIN)/python -m tests.upstream.run $(UPSTREAM)

bench: $(BENCHED) ## Celery end to end beside Redis, RabbitMQ and others (tests/benchmarks/README.md; BENCH='drain --pool solo --rounds 3')
	@$(BIN)/python -m tests.benchmarks $(BENCH)
$(BENCHED): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $(BENCHED)

bulk: $(STAMP) ## 10,000 certificates from a file to a zip, every one checked (CERTIFICATES=500 for fewer)
	$(BIN)/python -m tests.benchmarks.bench_bulk

bundle: $(STAMP) ## regenerate db/create_*.sql from the migrations
	$(BIN)/python -m celery_jobqueue.db bundle --write

clean: ## forget caches and builds; the environment and the embedded server stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .local/typing
