"""The wheel and the sdist contain the package, its licence and its types, and nothing else."""

import email
import tarfile
import zipfile

import pytest

import adam_jax
from tests.tools.package import ROOT, built


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return built(tmp_path_factory.mktemp("built"))


def sources():
    files = {str(p.relative_to(ROOT)) for p in (ROOT / "adam_jax").rglob("*.py")}
    return files | {"adam_jax/inspect/watch.html"}


def test_the_wheel_holds_the_package_alone(packages):
    with zipfile.ZipFile(packages[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == sources() | {"adam_jax/py.typed"}


def test_the_wheel_requires_jax_and_optax_alone(packages):
    with zipfile.ZipFile(packages[0]) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith("METADATA")]
        metadata = email.message_from_bytes(wheel.read(name))
        assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
    needed = [x for x in metadata.get_all("Requires-Dist", []) if "extra ==" not in x]
    assert sorted(needed) == ["jax>=0.8.0", "optax>=0.2.6"]
    assert metadata["Version"] == adam_jax.__version__
    assert metadata["Requires-Python"] == ">=3.11"


def test_the_sdist_holds_no_data(packages):
    with tarfile.open(packages[1]) as sdist:
        sizes = {m.name.partition("/")[2]: m.size for m in sdist.getmembers() if m.isfile()}
    assert sources() | {"LICENSE", "README.md", "pyproject.toml"} <= set(sizes)
    others = set(sizes) - sources() - {"adam_jax/py.typed"}
    assert others == {"LICENSE", "README.md", "CHANGELOG.md", "PKG-INFO", "pyproject.toml"} | (
        others & {".gitignore"}
    )
    assert sum(sizes.values()) < 2e6
