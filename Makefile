# `make mnist` and `make test` set up everything; they need only python3 (3.11 or newer) and make.
PYTHON ?= python3
BIN := .venv/bin
# One worker runs all tests of a file, so shared training and compilation run once. Files keep their
# order, in which the longest are among the first.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# Without --no-compile, most of the time goes into bytecode of modules that nothing imports.
INSTALL := $(BIN)/python -m pip install --no-compile $(if $(CI),--quiet)

# Otherwise every worker recompiles pytest's plugins and the tests, which takes seconds per worker.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: mnist test test-all test-oldest test-peers test-compilers tpu-bounds test-projects \
	test-trainers lint docs docs-serve setup clean

mnist: setup
	rm -rf runs/make-mnist
	$(BIN)/python -m examples.mnist train --model cnn --optimizer adam --learning-rate 1e-3 \
		--schedule cosine --epochs 4 --batch-size 64 --seed 0 --out runs/make-mnist
	@echo
	@echo "The digits it read, and the curves: runs/make-mnist/predictions.png, curves.png. Next:"
	@echo "  source .venv/bin/activate"
	@echo "  python -m examples.mnist predict runs/make-mnist examples/mnist/digit.png"
	@echo "  python -m examples.mnist export runs/make-mnist    # one file, without Flax and this code"
	@echo "  python -m examples.mnist serve runs/make-mnist/model.stablehlo    # a page to draw on"

# Tests that depend on XLA's rounding run in a second process, with XLA's usual optimizations.
BITS = $$(grep -rl --include="test_*.py" mark.bits tests | sort)
COMPILED = $$(grep -rlE --include="test_*.py" "(h200|tpu)_compiler" tests | sort)
COMPILERS = TPU_LIBRARY_PATH=$(CURDIR)/.compilers/tpu/libtpu/libtpu.so \
	JAX_CUDA_PJRT=$(CURDIR)/.compilers/cuda
PEERS = tests/peers $$(grep -rl --include="test_*.py" mark.peers tests | sort)

test: setup
	$(PYTEST) -m "not slow and not bits and not peers"
	$(PYTEST) -m "bits and not slow and not peers" $(BITS)

# All tests. They add the examples end to end, the server, faults, studies, the oldest
# versions, the compilers for TPUs and GPUs, and the libraries that members are compared with.
test-all: setup tpu-bounds test-oldest .venv/peers
	$(PYTEST) -m "not bits and not compilers"
	$(COMPILERS) $(PYTEST) -m "bits or compilers" $(COMPILED) $(BITS)

test-oldest: setup
	$(BIN)/python -m tests.tools.versions oldest

test-peers: .venv/peers
	$(PYTEST) -m peers $(PEERS)

# Compiles programs for a TPU and an H200 without the devices. Checks the TPU's bounds, and runs the
# tests that are skipped without the compilers.
test-compilers: tpu-bounds
	$(COMPILERS) $(PYTEST) -m compilers $(COMPILED)

tpu-bounds: .compilers/installed
	$(COMPILERS) $(BIN)/python -m benchmarks.tpu --gate

# Other projects' optimizer tests, with our functions in place of Optax's; one environment each.
test-projects: setup
	$(BIN)/python -m tests.peers.projects

# Members in the training loops of other projects, beside Optax's; one environment each.
test-trainers: setup
	$(BIN)/python -m tests.trainers

lint: .venv/linters docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The variable silences an advertisement. --quiet would hide warnings from --strict.
docs: .venv/linters
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: .venv/linters
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

setup: .venv/installed

# `make lint test-all` resolves and installs everything in one run of pip.
GROUPS := test
ifeq ($(filter lint test-all,$(MAKECMDGOALS)),lint test-all)
GROUPS += lint docs peers
endif

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing JAX, Flax and what the examples and tests need into .venv:"
	@echo "about 300 MB to download, 1.1 GB on disk, one to five minutes, once."
	@$(INSTALL) $(GROUPS:%=--group %) --editable .
	touch $@

# In separate folders, because JAX would load the compilers in .venv as TPU and GPU back ends.
.compilers/installed: .venv/installed
	rm -rf .compilers
	@echo "Installing the compilers of TPUs and of the H200 into .compilers: about 500 MB."
	@$(INSTALL) --no-deps --target .compilers/tpu --group tpu-compiler
	@$(INSTALL) --no-deps --target .compilers/cuda \
		jax-cuda12-pjrt==$$($(BIN)/python -c "import jaxlib; print(jaxlib.__version__)")
	touch $@

.venv/peers: .venv/installed
	@echo "Installing PyTorch, Keras and the other peers into .venv: gigabytes."
	@$(INSTALL) --group peers
	touch $@

# `make lint test-all`: pip installs one group after the other, and pyright reads .venv after both.
ifeq ($(filter lint test-all,$(MAKECMDGOALS)),lint test-all)
lint: .venv/peers
.venv/peers: .venv/linters
endif

.venv/linters: .venv/installed
	@echo "Installing ruff, pyright and MkDocs into .venv: about 100 MB, a minute, once."
	@$(INSTALL) --group lint --group docs
	touch $@

clean:
	rm -rf .venv .venv-oldest .venv-newest .compilers .projects runs build dist
