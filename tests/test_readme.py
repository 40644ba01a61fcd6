"""The README's sample runs, and ends where its comment says."""

import re
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.smoke
def test_the_sample_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    exec(compile(code, str(README), "exec"), names)
    np.testing.assert_allclose(names["params"]["w"], [1.0, -2.0, 0.5], atol=0.02)
    np.testing.assert_allclose(names["params"]["b"], 4.0, atol=0.02)


def test_relative_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text())
    assert len(links) >= 4
    assert [link for link in links if not (README.parent / link).exists()] == []
