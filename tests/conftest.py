import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # Inherited by processes that tests start.

import gc  # noqa: E402
import tempfile  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402

from tests.catalogue.compilation import FASTER, share_contexts  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)  # In this process only, for the sharding tests.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_traceback_in_locations_limit", 0)  # A twentieth of the time of tracing.
share_contexts()
gc.set_threshold(20_000, 20)  # 2 % of the time of all tests.


def pytest_configure(config):
    # Workers share one cache of compiled programs. The processes that tests start have none: some
    # of them are killed, or cannot write.
    if hasattr(config, "workerinput"):
        programs = config.workerinput["programs"]
    else:
        folder = tempfile.TemporaryDirectory(prefix="adam-jax-programs-")
        config.add_cleanup(folder.cleanup)
        programs = config.programs = folder.name
    jax.config.update("jax_compilation_cache_dir", programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # Tests marked `bits` use XLA's usual optimizations; plain pytest uses them for all tests.
    if "not bits" in config.option.markexpr:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FASTER}"
        jax.config.update("jax_disable_most_optimizations", True)
        # Processes that tests start must produce the bits of this one.
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    node.workerinput["programs"] = node.config.programs


@pytest.hookimpl(tryfirst=True)  # Before pytest selects by markers.
def pytest_collection_modifyitems(items):
    for item in items:
        if {"h200_compiler", "tpu_compiler"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("compilers")


def pytest_collection_finish():
    # Imported modules stay alive; freezing exempts them from garbage collection.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Clears JAX's caches after each file: gigabytes of programs of 2,700 tests slow the GC."""
    yield
    jax.clear_caches()
    share_contexts()
    gc.collect()
    gc.freeze()  # The next file's collections do not traverse the rest of this one's objects.


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium."""
    from tests.catalogue.browser import chromium

    driver = chromium(tmp_path_factory.mktemp("profile"))
    if driver is None:
        pytest.skip("no chromium with chromedriver: the page was not looked at")
    yield driver
    driver.quit()


@pytest.fixture
def h200_compiler():
    """Skips the test where no compiler for the H200 is installed."""
    from benchmarks import gpu

    try:
        gpu.plugin()
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def tpu_compiler():
    """Skips the test where no compiler for TPUs is installed."""
    from benchmarks.tpu import machine

    try:
        machine.library()
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def x64():
    """Enables double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def standard_promotion():
    """Uses JAX's standard promotion, which Optax's own code needs."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def pytest_terminal_summary(terminalreporter):
    """Prints the figures that tests recorded; pytest-xdist discards their output."""
    for report in terminalreporter.stats.get("passed", []):
        for name, text in report.user_properties:
            if name == "printed":
                terminalreporter.write_line(text)
