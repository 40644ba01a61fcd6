import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # Also of the processes that tests start.

import gc  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402

from tests.catalogue.compilation import FASTER  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)  # Of this process alone, for the tests of sharding.
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_configure(config):
    # What is about bits runs with what users have; so does all of it under plain pytest.
    if "not bits" in config.option.markexpr:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FASTER}"
        jax.config.update("jax_disable_most_optimizations", True)
        # The processes that tests start are compared with this one, to the last bit.
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"


def pytest_collection_finish():
    # What was imported stays; the collector went through it after each file, and often in between.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """After each file: the programs of 2,700 tests are gigabytes, and slow the collector down."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def h200_compiler():
    """Skips where no H200 can be compiled for."""
    from benchmarks import gpu_hlo

    try:
        gpu_hlo.plugin()
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def tpu_compiler():
    """Skips where no TPU can be compiled for."""
    from benchmarks import tpu_hlo_machine

    try:
        tpu_hlo_machine.library()
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def x64():
    """Double precision, for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def standard_promotion():
    """JAX's default promotion, for the tests in which Optax's own code runs: it needs it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def pytest_terminal_summary(terminalreporter):
    """Prints the figures that tests recorded, which pytest-xdist would swallow."""
    for report in terminalreporter.stats.get("passed", []):
        for name, text in report.user_properties:
            if name == "printed":
                terminalreporter.write_line(text)
