"""The official code on the same card: forward pass and training step of its SaShiMi, with or without its extension.

The folder is a checkout of github.com/albertfgu/diffwave-sashimi (the denoiser) or github.com/state-spaces/s4 (the
backbone alone, without the embedding of the diffusion step). docs/gpu.md says how to prepare it.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from sashimi_diffusion.benchmarks.gpu_check.denoisers import LENGTH, Size, forward_sizes, modes, training_sizes
from sashimi_diffusion.benchmarks.gpu_check.rows import Row, Setting
from sashimi_diffusion.benchmarks.gpu_check.timing import attempted, timed_row

_EXTENSIONS = "extensions"  # the package of both repositories with the Python side of the extension


def measure(setting: Setting, extension: str) -> Iterator[Row]:
    """Yield the times of the official code, eager, in float32 and under bfloat16 autocast.

    Args:
        setting: has the folder of the official code.
        extension: "with" or "without".
    """
    folder = Path(setting.peer or "")
    variant = f"{folder.name}, {extension} extension"
    if extension == "without":
        sys.modules[_EXTENSIONS] = None  # type: ignore[assignment]  # an import of it raises ImportError
    sys.path.insert(0, str(folder))
    layer, create = _official(folder)
    found = any(getattr(layer, name, False) for name in ("has_cauchy_extension", "has_cuda_extension"))
    if found != (extension == "with"):
        problem = (
            "the extension is not built: see docs/gpu.md" if extension == "with" else "the extension is still used"
        )
        yield Row("official code", variant, problem=problem)
        return
    sizes = [("forward", forward_sizes(setting.tiny)), ("training step", training_sizes(setting.tiny))]
    for kind, of_kind in sizes:
        for size in of_kind:
            for precision in dict.fromkeys(mode.precision for mode in modes(setting.device)):
                name, own = f"official {kind} {size}", f"{variant}, {precision}"
                measured = partial(_measured, name, own, partial(create, size, setting), precision, setting.device)
                yield attempted(name, own, measured, setting.device)


def _measured(name: str, variant: str, create: Callable[[], tuple[nn.Module, Any]], precision: str, device: str) -> Row:
    return timed_row(name, variant, _run(create(), "training" in name, precision, device), device)


def _official(folder: Path) -> tuple[ModuleType, Callable[[Size, Setting], tuple[nn.Module, Any]]]:
    """Return the module of the S4 layer, and a function that returns a model and its input."""
    if (folder / "models" / "sashimi.py").is_file():
        network = importlib.import_module("models.sashimi")
        return sys.modules[network.S4.__module__], lambda size, setting: _denoiser(network, size, setting)
    if (folder / "models" / "sashimi" / "sashimi.py").is_file():
        network = importlib.import_module("models.sashimi.sashimi")
        return sys.modules[network.S4.__module__], lambda size, setting: _backbone(network, size, setting)
    raise FileNotFoundError(
        f"{folder} has neither models/sashimi.py (diffwave-sashimi) nor models/sashimi/sashimi.py (s4)"
    )


def _denoiser(network: Any, size: Size, setting: Setting) -> tuple[nn.Module, Any]:
    length = 64 if setting.tiny else LENGTH
    model = network.Sashimi(
        d_model=size.d_model, n_layers=6, pool=[4, 4], expand=2, ff=2, unet=True, unconditional=True, L=length
    )
    sample = torch.randn(size.batch, 1, length, device=setting.device)
    return model.to(setting.device), (sample, torch.zeros(size.batch, 1, device=setting.device))


def _backbone(network: Any, size: Size, setting: Setting) -> tuple[nn.Module, Any]:
    model = network.Sashimi(
        d_model=size.d_model, n_layers=6, pool=[4, 4], expand=2, ff=2, bidirectional=True, unet=True
    )
    length = 64 if setting.tiny else LENGTH
    return model.to(setting.device), torch.randn(size.batch, length, size.d_model, device=setting.device)


def _run(created: tuple[nn.Module, Any], trains: bool, precision: str, device: str) -> Callable[[], None]:
    model, inputs = created
    model.train(trains)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(trains), torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            output = model(inputs)
            output = output[0] if isinstance(output, tuple) else output
        if trains:
            output.float().square().mean().backward()
            optimizer.step()

    return run
