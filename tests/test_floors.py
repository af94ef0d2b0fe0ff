"""Tests of the import order in docs/architecture.md, also for imports inside functions."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "sashimi_kernels": ROOT / "kernels" / "sashimi_kernels",
    "sashimi_diffusion": ROOT / "sashimi_diffusion",
    "sashimi_evaluation": ROOT / "evaluation" / "sashimi_evaluation",
}
"""Packages from the bottom to the top: a package may import itself and the packages before it."""

PACKAGE = ""
"""The name of a package's ``__init__`` in ``FLOORS``."""

FLOORS = {
    "sashimi_kernels": [
        {
            "allocation",
            "chunks",
            "commands",
            "choices",
            "cuda_launches",
            "derivatives",
            "discretization",
            "errors",
            "hardware",
            "layout",
            "measuring",
            "meta_device",
            "shapes",
        },
        {"reference"},
        {"torch_backend"},
        {"triton_backend"},
        {"backends"},
        {"channelwise", "convolution", "fourier", "generation", "pointwise", "recurrence"},
        {PACKAGE},
        {"compilation", "workloads"},
        {"aot", "benchmark", "counters", "warm_up"},
    ],
    "sashimi_diffusion": [
        {"errors"},
        {"terminal"},
        {"arguments", "paths", "files", "strict_json", "suggestions"},
        {"bundled", "cache_files", "command_line", "cuda_graph", "folder_lock", "memory", "output_files", "launch"},
        {"data", "schedulers"},
        {"ssm"},
        {"models"},
        {"generation"},
        {"pipelines", "interop"},
        {"likelihood"},
        {"training"},
        {"demo"},
        {"commands", "benchmarks", "scripts"},
        {PACKAGE},
    ],
    "sashimi_evaluation": [
        {"preparation"},
        {"metrics", "clips", "excerpts", "feature_shards", "html"},
        {"classifiers"},
        {"extractors", "feature_extraction"},
        {"extraction"},
        {"notes"},
        {"evaluation", "likelihood_comparison", "vocoder"},
        {"report", "listening_test"},
        {PACKAGE},
        {"commands", "benchmark", "scheduler_benchmark"},
    ],
}
"""Units (folders or single files) from the bottom to the top: a unit may import itself and units on lower floors."""


def _modules() -> dict[str, Path]:
    """Return the path of every module of the packages by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            if "pretrained" not in parts:
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imported(path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """Yield the modules of the packages that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            # `from package import module` imports the module; any other name comes from the package itself.
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else node.module for name in inner]
        else:
            continue
        yield from (name for name in names if name in modules)


MODULES = _modules()
IMPORTS = {name: set(_imported(path, MODULES)) for name, path in MODULES.items()}


def _unit(module: str) -> str:
    return module.split(".")[1] if "." in module else PACKAGE


def _floor(module: str) -> int:
    """Return the number of the floor of a module, 0 at the bottom."""
    floors = FLOORS[module.split(".")[0]]
    return next(number for number, units in enumerate(floors) if _unit(module) in units)


def test_every_unit_has_a_floor() -> None:
    units = {(module.split(".")[0], _unit(module)) for module in MODULES}
    assert units == {(package, unit) for package, floors in FLOORS.items() for units in floors for unit in units}


def test_packages_import_downwards() -> None:
    order = list(PACKAGES)
    for module, imported in IMPORTS.items():
        for other in imported:
            assert order.index(other.split(".")[0]) <= order.index(module.split(".")[0]), f"{module} imports {other}"


def test_units_import_downwards() -> None:
    for module, imported in IMPORTS.items():
        for other in imported:
            same_package = module.split(".")[0] == other.split(".")[0]
            if same_package and _unit(module) != _unit(other):
                assert _floor(other) < _floor(module), f"{module} imports {other}"


def test_no_circle_between_files() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, "circle: " + " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(IMPORTS[module] - {module}):
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("package", PACKAGES)
def test_files_have_a_readable_size(package: str) -> None:
    """Files have up to 350 lines; files of fewer than 50 lines are imported by more than one file."""
    for module, path in MODULES.items():
        if module.split(".")[0] != package or path.name == "__init__.py":
            continue
        lines = len(path.read_text(encoding="utf-8").splitlines())
        readers = [other for other, imported in IMPORTS.items() if module in imported and other != module]
        assert lines <= 350, f"{path} has {lines} lines: split it by idea"
        folded = (
            lines >= 50 or len(readers) != 1 or MODULES[readers[0]].name == "__init__.py"
        )  # a name exported by __init__.py has many readers
        assert folded, f"{path} has {lines} lines and one reader: fold it into {readers[0]}"
