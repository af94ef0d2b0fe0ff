"""The files that let plain diffusers load a pipeline folder of this package.

``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`` takes a pipeline class from ``pipeline.py`` and
component classes from one module in each component's folder. Here these only import the installed package, so a folder
holds no code that could age. Only the layout of ``model_index.json`` and public diffusers interfaces are used.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

_PUBLIC = ("sashimi_diffusion.pipelines", "sashimi_diffusion.models", "sashimi_diffusion.schedulers")
_TEXT = '''"""Part of a sashimi-diffusion pipeline; needs the package (pip install sashimi-diffusion)."""

from {module} import {name}

__all__ = ["{name}"]
'''


def write_remote_code(folder: Path, pipeline_class: type, components: dict[str, Any]) -> None:
    """Write the import files and point ``model_index.json`` to them.

    Args:
        folder: a pipeline folder that diffusers has just written.
        pipeline_class: the class to load it with.
        components: component name -> object; diffusers' own classes need no file.
    """
    index_path = folder / "model_index.json"
    index = json.loads(index_path.read_text(encoding="utf-8"))
    index["_class_name"] = ["pipeline", pipeline_class.__name__]
    _write(folder / "pipeline.py", pipeline_class)
    for name, component in components.items():
        # A compiled model is a wrapper around the one that was saved.
        component_class = type(getattr(component, "_orig_mod", component))
        if not component_class.__module__.startswith("diffusers."):
            # The modules of all components land in one place when loaded, so their names must differ.
            index[name] = [f"sashimi_{name}", component_class.__name__]
            _write(folder / name / f"sashimi_{name}.py", component_class)
    index_path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in (index_path, folder / "model" / "config.json"):
        _forget_origin(path)


def _write(path: Path, wanted: type) -> None:
    module = next(
        (package for package in _PUBLIC if getattr(import_module(package), wanted.__name__, None) is wanted),
        wanted.__module__,
    )
    path.write_text(_TEXT.format(module=module, name=wanted.__name__), encoding="utf-8")


def _forget_origin(path: Path) -> None:
    # diffusers notes the folder something was loaded from: of no use, and private, to whom the folder is given.
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.pop("_name_or_path", None) is not None:
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
