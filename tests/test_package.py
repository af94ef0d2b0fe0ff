"""Tests of the package: version, exported names, imports."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import sashimi_diffusion


def test_the_version_is_that_of_the_project_file() -> None:
    project = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.+)"$', project, re.MULTILINE)[1] == sashimi_diffusion.__version__


@pytest.mark.parametrize("name", sashimi_diffusion.__all__)
def test_exported_names_are_imported_at_first_use(name: str) -> None:
    assert getattr(sashimi_diffusion, name).__module__.startswith("sashimi_diffusion.")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'SashimiVocoder'"):
        sashimi_diffusion.SashimiVocoder  # noqa: B018


def test_evaluation_loads_no_pipeline() -> None:
    """Importing the package or its command loads no pipeline of diffusers or this project."""
    code = (
        "import sys, sashimi_evaluation, sashimi_evaluation.commands.evaluate\n"
        "pipelines = ('sashimi_diffusion.pipelines', 'diffusers.pipelines.')\n"
        "print([name for name in sys.modules if name.startswith(pipelines)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
