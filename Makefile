# `make mnist` and `make test` do all the set-up: they need only python3 (3.11 or newer) and make.
PYTHON ?= python3
BIN := .venv/bin
# A file is one worker's, which trains and compiles once what its tests share. In their order: the
# longest files are among the first.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# pip, with one line that says how far it is.
INSTALL := $(BIN)/python -m tests.install

# Else every worker compiles pytest's plugins and the tests anew, which takes seconds of each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: mnist test test-all test-peers test-compilers test-downstream lint docs docs-serve setup clean

mnist: setup
	rm -rf runs/make-mnist
	$(BIN)/python -m examples.mnist train --model cnn --optimizer adam --learning-rate 1e-3 \
		--schedule cosine --epochs 4 --batch-size 64 --seed 0 --out runs/make-mnist
	@echo
	@echo "The digits it read, and the curves: runs/make-mnist/predictions.png, curves.png. Next:"
	@echo "  source .venv/bin/activate"
	@echo "  python -m examples.mnist predict runs/make-mnist examples/mnist/digit.png"
	@echo "  python -m examples.mnist train --resume --epochs 6 --stretch --out runs/make-mnist"
	@echo "  python -m examples.mnist export runs/make-mnist"
	@echo "  python -m examples.mnist serve runs/make-mnist/model.stablehlo    # a page to draw on"

# What depends on how XLA rounds runs in a second process, with XLA's usual optimizations.
BITS = $$(grep -rl --include="test_*.py" mark.bits tests | sort)

test: setup
	$(PYTEST) -m "not slow and not bits"
	$(PYTEST) -m "bits and not slow" $(BITS)

# All tests: also the examples end to end, the server, faults, studies, the oldest and the newest
# versions, the compilers of TPUs and GPUs, and the libraries that members are compared with.
test-all: setup test-compilers
	$(PYTEST) -m "not bits"
	$(PYTEST) -m bits $(BITS)
	$(BIN)/python -m tests.versions
	$(MAKE) test-peers

test-peers: setup
	@echo "Installing PyTorch, Keras and the other peers into .venv: gigabytes."
	@$(INSTALL) --group peers
	$(BIN)/python -m pytest -n auto tests/peers tests/docs/test_pages.py tests/docs/test_interchange.py \
		tests/convert/test_interchange.py tests/convert/test_saved_states.py tests/family/test_array_numbers.py

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
	@echo "Installing JAX, Flax and what the examples and tests need into .venv:"
	@echo "about 300 MB to download, 1.1 GB on disk, one to five minutes, once."
	@$(INSTALL) --group test --editable .
	touch $@

# Each in a folder of its own: JAX would take what is in .venv for a TPU's or a GPU's back end.
.compilers/installed: .venv/installed
	rm -rf .compilers
	@echo "Installing the compilers of TPUs and of the H200 into .compilers: about 500 MB."
	@$(INSTALL) --no-deps --target .compilers/tpu --group tpu-compiler
	@$(INSTALL) --no-deps --target .compilers/cuda \
		jax-cuda12-pjrt==$$($(BIN)/python -c "import jaxlib; print(jaxlib.__version__)")
	touch $@

.venv/linters: .venv/installed
	@echo "Installing ruff, pyright and MkDocs into .venv: about 100 MB, a minute, once."
	@$(INSTALL) --group lint --group docs
	touch $@

clean:
	rm -rf .venv .venv-oldest .venv-newest .compilers .downstream runs build dist
