"""Write the files that plain diffusers needs to load a pipeline folder of this package.

``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`` imports the pipeline class from ``pipeline.py``
and each component class from a module in the folder of the component. These modules only import the installed package,
so a saved folder works with later versions of it.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from sashimi_diffusion.paths import read_json

_PUBLIC = ("sashimi_diffusion.pipelines", "sashimi_diffusion.models", "sashimi_diffusion.schedulers")
_TEXT = '''"""Part of a sashimi-diffusion pipeline; needs the Python package sashimi-diffusion."""

from {module} import {name}

__all__ = ["{name}"]
'''


def write_remote_code(folder: Path, pipeline_class: type, components: dict[str, Any]) -> None:
    """Write the import files and point ``model_index.json`` to them.

    Args:
        folder: a pipeline folder that diffusers has just written.
        pipeline_class: class of the pipeline.
        components: component name -> object; classes of diffusers need no file.
    """
    index_path = folder / "model_index.json"
    index = read_json(index_path, "the index of a pipeline")
    index["_class_name"] = ["pipeline", pipeline_class.__name__]
    _write(folder / "pipeline.py", pipeline_class)
    for name, component in components.items():
        # A model that torch.compile has wrapped keeps the original in _orig_mod.
        component_class = type(getattr(component, "_orig_mod", component))
        if not component_class.__module__.startswith("diffusers."):
            # diffusers copies the modules of all components into one folder, so their names must differ.
            index[name] = [f"sashimi_{name}", component_class.__name__]
            _write(folder / name / f"sashimi_{name}.py", component_class)
    index_path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in (index_path, folder / "model" / "config.json"):
        _remove_origin(path)


def _write(path: Path, imported: type) -> None:
    """Write a module that imports a class, from the public package that exports it if there is one."""
    module = next(
        (package for package in _PUBLIC if getattr(import_module(package), imported.__name__, None) is imported),
        imported.__module__,
    )
    path.write_text(_TEXT.format(module=module, name=imported.__name__), encoding="utf-8")


def _remove_origin(path: Path) -> None:
    """Remove the path from which diffusers loaded a component: it is private, and of no use on other machines."""
    config = read_json(path, "a config")
    if config.pop("_name_or_path", None) is not None:
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
