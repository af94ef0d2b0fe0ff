"""Tests of the package: metadata, lower bounds, data files, exported names, imports."""

import importlib
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import sashimi_diffusion

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest needs it before Python 3.11

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
METADATA = PROJECT["project"]
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def bounds() -> dict[str, Version]:
    """Return the lower bound of every dependency that is meant for this platform; the tests need all extras."""
    texts = [
        *METADATA["dependencies"],
        *(text for extra in METADATA["optional-dependencies"].values() for text in extra),
    ]
    needed = [requirement for requirement in map(Requirement, texts) if requirement.name != METADATA["name"]]
    chosen = [requirement for requirement in needed if requirement.marker is None or requirement.marker.evaluate()]
    return {requirement.name: Version(next(iter(requirement.specifier)).version) for requirement in chosen}


BOUNDS = bounds()


def test_the_version_is_that_of_the_project_file() -> None:
    assert METADATA["version"] == sashimi_diffusion.__version__


def test_dependencies_are_not_older_than_their_bounds() -> None:
    older = {name: bound for name, bound in BOUNDS.items() if Version(version(name)) < bound}
    assert older == {}


def test_the_lowest_set_is_exactly_at_the_bounds() -> None:
    """Otherwise `make test-lowest` would not test the bounds: another dependency requires a later version."""
    installed = {name: Version(Version(version(name)).base_version) for name in BOUNDS}
    if installed["torch"] != BOUNDS["torch"]:
        pytest.skip("these are not the lowest versions; run `make test-lowest`")
    assert installed == BOUNDS


def test_the_page_for_a_package_index_has_only_absolute_links() -> None:
    text = (ROOT / METADATA["readme"]).read_text()
    targets = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r"""(?:src|href)=["']([^"']+)""", text)
    assert targets
    assert [target for target in targets if not target.startswith("https://")] == []


def test_the_page_for_a_package_index_has_the_example_of_the_readme() -> None:
    examples = re.findall(r"```python\n.*?```", (ROOT / METADATA["readme"]).read_text(), flags=re.DOTALL)
    readme = (ROOT / "README.md").read_text()
    assert examples
    assert [example for example in examples if example not in readme] == []


def test_the_page_for_a_package_index_names_all_commands_and_extras() -> None:
    text = (ROOT / METADATA["readme"]).read_text()
    extras = set(METADATA["optional-dependencies"]) - {"docs", "test"}
    assert set(re.findall(r"^\| `([\w-]+)` \|", text, flags=re.MULTILINE)) == extras | set(METADATA["scripts"])


@pytest.mark.parametrize("name", METADATA["scripts"])
def test_commands_exist(name: str) -> None:
    module, _, function = METADATA["scripts"][name].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("package", SETUPTOOLS["package-data"])
def test_data_files_are_installed(package: str) -> None:
    folder = next(
        path for where in SETUPTOOLS["packages"]["find"]["where"] if (path := ROOT / where / package).is_dir()
    )
    named = {path for pattern in SETUPTOOLS["package-data"][package] for path in folder.glob(pattern)}
    pages_for_developers = {path for path in folder.rglob("README.md") if path.parent.joinpath("__init__.py").exists()}
    files = {path for path in folder.rglob("*.*") if path.suffix not in (".py", ".pyc") and path.is_file()}
    assert files - named - pages_for_developers == set()


def test_bundled_weights_have_a_license_in_their_card_and_in_the_metadata() -> None:
    licenses = set()
    text = (ROOT / "LICENSE-WEIGHTS.md").read_text()
    for package in ("sashimi_diffusion", "evaluation/sashimi_evaluation"):
        for folder in (ROOT / package / "pretrained").iterdir():
            front_matter = (folder / "README.md").read_text().split("---\n")[1]
            licenses.add(yaml.safe_load(front_matter)["license"])
            assert folder.relative_to(ROOT).as_posix().removeprefix("evaluation/") in text
    expression = METADATA["license"].lower().split(" and ")
    assert licenses <= set(expression)
    assert all((ROOT / name).is_file() for name in METADATA["license-files"])


def test_the_same_versions_of_python_are_declared_and_tested() -> None:
    prefix = "Programming Language :: Python :: 3."
    declared = [text.removeprefix(prefix) for text in METADATA["classifiers"] if text.startswith(prefix)]
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]
    assert [f"3.{minor}" for minor in declared] == jobs["newest"]["strategy"]["matrix"]["python-version"]
    assert METADATA["requires-python"] == f">=3.{declared[0]}"


def test_messages_name_a_way_to_install_that_exists() -> None:
    """The project is not on a package index, so messages name the packages that are missing."""
    folders = ("sashimi_diffusion", "evaluation", "kernels", "recipes", "tests", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md")]
    own = re.compile(r"""pip install ["']?""" + "sashimi")
    assert [path for path in [*files, ROOT / "README.md"] if own.search(path.read_text(encoding="utf-8"))] == []


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
