# Two commands on a fresh machine: `make demo`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
PARALLEL := --numprocesses logical --dist worksteal
export PYTHONSAFEPATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Half of what an installation takes is to compile modules of which few are used: those that are
# compile themselves when they are, for good.
INSTALL := $(BIN)/pip install --quiet --no-compile -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-all test-oldest bench bench-gpu lint format types wheel gpu clean

setup: .venv/dev
demo: .venv/base
	@echo "A 4x4 sudoku, the most confident token of every forward:"
	$(BIN)/dlm generate "Sudoku: 3102200002100320" --gen-length 20 --watch
	@echo "The same, with all tokens that are confident enough:"
	$(BIN)/dlm generate "Sudoku: 3102200002100320" --gen-length 20 --decoder threshold
	@echo "Some arithmetic:"
	$(BIN)/dlm generate "Compute: 6*8, 9*7, 5*4, 12+6" --gen-length 42 --decoder threshold
test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" $(PARALLEL)
test-all: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PARALLEL)
# The same tests of all that touches transformers, on the oldest version that pyproject.toml admits.
OLDEST := transformers==5.17.0
test-oldest: .venv/dev
	$(BIN)/pip install --quiet --upgrade --target build/oldest "$(OLDEST)"
	PYTHONPATH=build/oldest OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" $(PARALLEL) \
	  tests/golden tests/integration/families tests/integration/test_families_* \
	  tests/integration/test_loading* tests/integration/test_huggingface* tests/unit/test_families* \
  tests/integration/test_w8a8* \
	  tests/unit/test_huggingface* tests/unit/test_configs.py tests/unit/test_experts.py tests/laws/test_every_family.py \
	  tests/laws/test_execution.py tests/integration/test_parallel*
bench: .venv/dev
	$(BIN)/dlm bench sampling
# All that the targets of docs/benchmarks ask of a GPU, some ten minutes on an H200. Where pip has no
# network, PY=python3 takes that interpreter's packages and this checkout, and nothing is installed.
# A folder with nothing but a link to the package: the root itself holds a `kernels` and an `eval`.
CHECKOUT := build/checkout
ifdef PY
RUN := PYTHONPATH=$(CHECKOUT) $(PY) -m
else
RUN := $(BIN)/python -m
endif
RESULTS := docs/benchmarks/gpu.jsonl
GPU := $(RUN) dlm bench
INTO := --device cuda --out $(RESULTS)
DECODE := --shape llada-8b --prompt-length 256 --gen-length 96 --steps 33 --repeats 2 $(INTO)
BATCHES := --batch-size 1 --batch-size 4 --batch-size 16 --batch-size 32
# What fails stops nothing else, and fails the whole at its end.
bench-gpu: $(if $(PY),$(CHECKOUT)/dlm,.venv/dev)
	@failed=0; set -x; \
	$(GPU) sampling $(INTO) || failed=1; \
	$(GPU) decode --cache dual $(BATCHES) $(DECODE) || failed=1; \
	$(GPU) decode $(DECODE) || failed=1; \
	$(GPU) batch --shape llada-8b --steps 22 --cache dual --repeats 2 $(INTO) || failed=1; \
	$(GPU) step --shape llada-8b --steps 22 --repeats 2 $(INTO) || failed=1; \
	$(GPU) serve --shape llada-8b --steps 22 --repeats 1 $(INTO) || failed=1; \
	$(RUN) pytest -q -p no:benchmark -m gpu $(PARALLEL) --maxprocesses 9 tests/gpu || failed=1; \
	exit $$failed
$(CHECKOUT)/dlm:
	mkdir -p $(@D) && ln -sfn $(CURDIR)/dlm $@
lint: .venv/dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
format: .venv/dev
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .
types: .venv/dev
	$(BIN)/mypy
wheel: .venv/dev
	rm -rf dist && $(BIN)/python -m build --outdir dist .
gpu: .venv/dev
	$(BIN)/pytest -m gpu $(PARALLEL) --maxprocesses 9
clean:
	rm -rf .venv build dist *.egg-info

.venv/base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) -e .
	touch $@
.venv/dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) -e ".[dev]"
	touch .venv/base $@
