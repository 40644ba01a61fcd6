# `make mnist` and `make test` do all the set-up: they need only python3 (3.11 or newer) and make.
PYTHON ?= python3
BIN := .venv/bin
# A file is one worker's, which trains and compiles once what its tests share. In their order: the
# longest files are among the first.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# Else every worker compiles pytest's plugins and the tests anew, which takes seconds of each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: mnist test test-peers test-compilers test-downstream lint docs docs-serve setup clean

mnist: setup
	rm -rf runs/make-mnist
	$(BIN)/python -m examples.mnist train --model cnn --optimizer adam --learning-rate 1e-3 \
		--schedule cosine --epochs 4 --batch-size 64 --seed 0 --out runs/make-mnist

test: setup
	$(PYTEST) -m "not bits"
	$(PYTEST) -m bits $$(grep -rl --include="test_*.py" mark.bits tests | sort)
	$(BIN)/python -m tests.newest_python

test-peers: setup
	$(BIN)/python -m pip install --quiet --group peers
	$(BIN)/python -m pytest -n auto tests/test_torch.py tests/test_keras.py tests/test_mup_torch.py \
		tests/test_migrating_torch.py tests/test_migrating_keras.py tests/test_pages.py \
		tests/test_interchange.py tests/test_interchange_torch.py tests/test_saved_states.py \
		tests/test_docs_interchange.py tests/test_array_numbers.py

# Programs for a TPU and for an H200, compiled without one: the TPU's bounds, and the tests that are
# skipped where a compiler is not installed.
test-compilers: export TPU_LIBRARY_PATH = $(CURDIR)/.compilers/tpu/libtpu/libtpu.so
test-compilers: export JAX_CUDA_PJRT = $(CURDIR)/.compilers/cuda
test-compilers: .compilers/installed
	$(BIN)/python -m benchmarks.tpu_hlo --gate
	$(PYTEST) $$(grep -rlE --include="test_*.py" "(h200|tpu)_compiler" tests | sort)

# Other projects' optimizer tests, with our names in Optax's place; each has an environment of its own.
test-downstream: setup
	$(BIN)/python -m tests.downstream

lint: .venv/linters docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The variable silences an advertisement of another tool. Not --quiet: it hides warnings from --strict.
docs: .venv/linters
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: .venv/linters
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

setup: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --group test --editable .
	touch $@

# Each in a folder of its own: JAX would take what is in .venv for a TPU's or a GPU's back end.
.compilers/installed: .venv/installed
	rm -rf .compilers
	$(BIN)/python -m pip install --quiet --no-deps --target .compilers/tpu --group tpu-compiler
	$(BIN)/python -m pip install --quiet --no-deps --target .compilers/cuda \
		jax-cuda12-pjrt==$$($(BIN)/python -c "import jaxlib; print(jaxlib.__version__)")
	touch $@

.venv/linters: .venv/installed
	$(BIN)/python -m pip install --quiet --group lint --group docs
	touch $@

clean:
	rm -rf .venv .venv-newest .compilers .downstream runs build dist
