# Every target first brings the set-up up to date; that takes well under a second when nothing changed.
PYTHON ?= python3
BIN := .venv/bin
COMPOSE ?= dstack/devnet/docker-compose.yaml
VECTORS ?= ../shared/vectors
RESULTS ?= demo-results
SECONDS ?= 60
JOBS ?= 1
UV_COMPILE = .lock/bin/uv pip compile --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header -q

# ape keeps all its state inside the project.
export APE_DATA_FOLDER := $(CURDIR)/.ape
export SOLCX_BINARY_PATH := $(CURDIR)/.solcx
FOUNDRY := $(CURDIR)/node_modules/@foundry-rs
export PATH := $(FOUNDRY)/anvil-linux-amd64/bin:$(FOUNDRY)/forge-linux-amd64/bin:$(PATH):$(CURDIR)/$(BIN)

.PHONY: help setup parts demo test lint format vectors bench contracts build symbolic slither fuzz mutation snapshots lock clean

help:  ## what can be typed here
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup:  ## install everything that is pinned, if it is not there yet
	@$(PYTHON) scripts/install.py

parts:  ## Debian packages that some tests drive: QEMU, PostgreSQL, Chromium, curl, ... (as root; else those tests skip)
	@$(PYTHON) scripts/install_debian.py

demo: setup  ## the main job on a docker-compose file: make demo [COMPOSE=file] [RESULTS=folder] [ARGS=--json]
	@$(BIN)/dstack demo --compose "$(COMPOSE)" --results "$(RESULTS)" $(ARGS)

test: setup parts  ## every test; recompiles the contracts and compares
	$(BIN)/python scripts/compile_contracts.py --check
	forge test --summary
	$(BIN)/python -m pytest -p no:ape_test -q
	@# ape alone would go on with what it compiled before some changes of the sources.
	$(BIN)/ape compile --force > /dev/null
	$(BIN)/ape test -q --network ethereum:local:foundry

lint: setup  ## format, lint, types, import rules, the tree in ARCHITECTURE.md
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/check_tree.py

format: setup  ## rewrite the sources in the project's form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

vectors: setup  ## golden data through our public functions: make vectors [VECTORS=folder]
	@$(BIN)/python scripts/run_vectors.py "$(VECTORS)"

bench: setup  ## our rates beside the limits of this machine, as JSON: make bench [FIGURES="quote_verification ..."]
	@$(BIN)/python scripts/bench.py $(FIGURES)

contracts: setup .symbolic/ready  ## build, forge tests with gas by function, gas snapshot, halmos, mutation table (long)
	$(BIN)/python scripts/compile_contracts.py
	forge test --gas-report --no-match-contract Proofs --no-match-test invariant
	forge test --match-test invariant
	$(BIN)/python -m pytest -p no:ape_test -q tests/contracts/test_gas.py tests/contracts/properties/test_p26_gas.py
	@echo "gas snapshot (tests/contracts/gas.json):" && cat tests/contracts/gas.json
	$(BIN)/python scripts/prove.py
	$(BIN)/python scripts/mutate_contracts.py $(ARGS)

build: setup  ## compile the contracts and write the committed artifacts, nothing else
	$(BIN)/python scripts/compile_contracts.py

symbolic: setup .symbolic/ready  ## prove properties of the contracts, and that changed contracts fail (some minutes)
	@$(BIN)/python scripts/prove.py

slither: setup .audit/ready  ## static analysis; every finding must be argued in docs/slither.md
	@$(BIN)/python scripts/run_slither.py

.symbolic/ready .audit/ready .fuzz/ready: .%/ready: requirements/%.txt
	$(BIN)/python -m venv --clear $(@D)
	$(@D)/bin/pip -q --disable-pip-version-check install --no-deps --require-hashes -r $<
	@touch $@

fuzz: setup .fuzz/ready  ## every parser against inputs made up by a fuzzer: make fuzz [SECONDS=60] [TARGETS="quote crl"] [JOBS=1]
	@PYTHONPATH=. .fuzz/bin/python scripts/fuzz.py --seconds $(SECONDS) --jobs $(JOBS) $(TARGETS)

mutation: setup  ## which small faults in the contracts the tests notice: make mutation [ARGS="--all --json FILE"]
	@$(BIN)/python scripts/mutate_contracts.py $(ARGS)

snapshots: setup  ## rewrite what tests compare: gas and storage layout of the contracts
	$(BIN)/python scripts/storage_layout.py
	$(BIN)/python -m pytest -p no:ape_test -q tests/contracts/test_gas.py --rewrite-gas

lock:  ## resolve requirements/*.in into *.txt with hashes
	$(PYTHON) -m venv .lock && .lock/bin/pip -q install uv
	$(UV_COMPILE) requirements/all.in --override requirements/overrides.in -o requirements/all.txt
	$(UV_COMPILE) requirements/product.in -c requirements/all.txt -o requirements/product.txt
	$(UV_COMPILE) requirements/build.in -o requirements/build.txt
	$(UV_COMPILE) requirements/node.in -o requirements/node.txt
	$(UV_COMPILE) requirements/symbolic.in -o requirements/symbolic.txt
	$(UV_COMPILE) requirements/audit.in -o requirements/audit.txt
	$(UV_COMPILE) requirements/fuzz.in --override requirements/overrides.in -o requirements/fuzz.txt
	rm -rf .lock

clean:  ## remove everything that set-up and runs have made
	rm -rf .venv .symbolic .audit .fuzz node_modules .solcx .ape .build demo-results contracts/.cache
