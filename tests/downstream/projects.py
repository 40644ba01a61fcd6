"""Projects that use Optax and ship tests in their source distributions, the smallest first."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Project:
    """A project, and its tests that build or run an optimizer.

    Attributes:
      name: name on the package index.
      version: version of the source distribution.
      tests: test files that use Optax, directly or indirectly.
      needs: distributions that the tests import, other than the project's requirements.
      options: options for pytest.
    """

    name: str
    version: str
    tests: tuple[str, ...]
    needs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


# For all projects: the versions used for the figures in the documentation.
PINS = ("jax==0.10.2", "jaxlib==0.10.2", "optax==0.2.8", "pytest>=9,<10")

PROJECTS = (
    Project(
        "dynamax",
        "1.0.3",
        (
            "dynamax/parameters_test.py",
            "dynamax/utils/test_optimize.py",  # Takes 30,000 uncompiled steps.
            "dynamax/hidden_markov_model/models/test_models.py",
            "dynamax/linear_gaussian_ssm/models_test.py",
        ),
        options=("-k", "test_sgd or run_sgd or parameter"),
    ),
    Project("flowjax", "19.1.2", ("tests/test_train",), ("beartype", "numpyro")),
    Project("numpyro", "0.22.0", ("test/test_optimizers.py",)),
    Project(
        "flowMC",
        "0.6.4",
        (
            "tests/integration/test_normalizingFlow.py",
            "tests/unit/test_flowmatching.py",
            "tests/unit/test_strategies.py",
        ),
    ),
    Project(
        "blackjax",
        "1.7.1",
        (
            "tests/vi/test_fullrank_vi.py",
            "tests/vi/test_meanfield_vi.py",
            "tests/vi/test_svgd.py",
            "tests/adaptation/test_adaptation.py",
        ),
        ("chex",),
        ("-k", "VI or vi or svgd or SVGD or chees"),
    ),
    Project(
        "gpjax",
        "1.0.0",
        ("tests/test_fit.py", "tests/test_integration_equinox.py"),
        ("hypothesis",),
    ),
    Project(
        "flax",
        "0.12.8",
        (
            "tests/cursor_test.py",
            "tests/nnx/ema_test.py",
            "tests/nnx/integration_test.py",
            "tests/nnx/optimizer_test.py",
        ),
        ("absl-py", "cloudpickle"),
    ),
)
