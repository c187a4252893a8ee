# SPDX-License-Identifier: Apache-2.0
# One verb per habit; `make help` lists them. ARGS are handed on: make test ARGS='-k lpm -x'

PYTHON := .venv/bin/python
ARGS ?=
C_FILES = $(wildcard csrc/*.[ch] tests/c/*.[ch] tests/fuzz/*.[ch] bench/*.[ch])
C_UNITS = $(wildcard csrc/*.c bench/*.c)
C_FLAGS := -std=gnu11 -D_GNU_SOURCE -O2 -Icsrc
C_WARNINGS := -Wall -Wextra -Wshadow -Wconversion -Wmissing-declarations -Werror

.DEFAULT_GOAL := help
.PHONY: help setup build demo demo-down test lint format fuzz mutants coverage soak scorecard bench bench-micro bench-callgrind wheel clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Debian packages, .venv, native module; does only what is missing
	@.ci/setup

build: setup ## the native module and the test probe
	@$(PYTHON) csrc/build_native.py
	@$(PYTHON) csrc/build_native.py --probe

demo: setup ## three hosts, one of them plain kernel VXLAN, talk (KEEP=1 leaves them standing)
	@$(PYTHON) -m bench.demo $(ARGS)

demo-down: setup ## take down what KEEP=1 left
	@$(PYTHON) -m bench.demo down

ifeq ($(ARGS),)
test: build ## every test; root, in network namespaces
	@status=0; \
	$(PYTHON) -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not soak and not alone" || status=1; \
	echo "tests that measure time, one after the other"; \
	$(PYTHON) -m pytest -m "alone and not soak" tests/e2e || status=1; \
	exit $$status
else
test: build
	@$(PYTHON) -m pytest $(ARGS)
endif

lint: setup ## ruff, mypy, clang-format, gcc's warnings, clang-tidy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	clang-format-14 --dry-run -Werror $(C_FILES)
	@for unit in $(C_UNITS); do \
		gcc $(C_FLAGS) $(C_WARNINGS) -c -o /dev/null $$unit || exit 1; done; echo "gcc: no warnings"
	@clang-tidy-14 --quiet $(C_UNITS) -- $(C_FLAGS) 2>build/clang-tidy.log || { cat build/clang-tidy.log; exit 1; }
	@echo "clang-tidy: no warnings"

format: setup ## let ruff and clang-format rewrite the sources
	$(PYTHON) -m ruff check --fix-only .
	$(PYTHON) -m ruff format .
	clang-format-14 -i $(C_FILES)

fuzz: build ## the fuzzers, 10 s each (ARGS="--seconds 60 merge", "--executions 1000000 --walls", "--blind")
	@$(PYTHON) -m tests.fuzz.run $(ARGS)

coverage: setup ## branches of the hot path that no test takes fail it (ARGS=--missing names them)
	@$(PYTHON) -m tests.coverage $(ARGS)

mutants: build ## disables one check of the source after the other: a test must fail (ARGS=--help)
	@printf '%s\n' "$$ARGS" | xargs $(PYTHON) -m tests.mutants.run # a|b is a pattern here, not for a shell

soak: build ## traffic, changes, restarts and kills; memory, losses and books (MINUTES=5, ARGS=--kill-forwarders)
	@$(PYTHON) -m tests.soak.run --minutes $(or $(MINUTES),5) $(ARGS)

scorecard: build ## kills, outages, upgrades, floods in figures beside marks (ARGS=--quick, ARGS='--only 13,14')
	@$(PYTHON) -m tests.scorecard.run $(ARGS)

bench: build ## overlayd beside kernel VXLAN and no overlay (ARGS=--quick: within 90 s)
	@$(PYTHON) -m dataplane bench $(ARGS)

bench-micro: build ## the pure C units, one by one
	@$(PYTHON) -m pytest bench/test_micro.py bench/test_micro_table.py $(ARGS)

bench-callgrind: setup ## instructions of the hot functions beside bench/instructions.json (ARGS=--update: rewrites it)
	@$(PYTHON) -m bench.callgrind $(ARGS)

wheel: setup ## dist/overlayd-*.whl, for nodes without a compiler
	@rm -rf build/lib.* build/bdist.* dist
	@$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	@echo dist/*.whl

clean: ## all that was built, .venv included
	rm -rf build dist .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	rm -f dataplane/_native*.so tests/_probe*.so
	find . -name __pycache__ -prune -exec rm -rf {} +
