"""The package as a whole."""

import re
from pathlib import Path

import sashimi_diffusion


def test_the_version_is_that_of_the_project_file() -> None:
    project = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.+)"$', project, re.MULTILINE)[1] == sashimi_diffusion.__version__
