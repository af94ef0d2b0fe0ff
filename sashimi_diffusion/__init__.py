"""Raw audio generation with state-space models: SaShiMi and DiffWave as diffusers pipelines.

from sashimi_diffusion import SashimiPipeline

pipeline = SashimiPipeline.from_pretrained("sashimi-digits")
audio = pipeline(batch_size=4, num_inference_steps=200).audios  # (4, 1, length)
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sashimi_diffusion.models import (
        AutoregressiveModel,
        SashimiAutoregressive,
        SashimiBackbone,
        SashimiDenoiser,
        WaveNetDenoiser,
    )
    from sashimi_diffusion.pipelines import AutoPipeline, SashimiAutoregressivePipeline, SashimiPipeline
    from sashimi_diffusion.schedulers import DiffWaveScheduler

__all__ = [
    "AutoPipeline",
    "AutoregressiveModel",
    "DiffWaveScheduler",
    "SashimiAutoregressive",
    "SashimiAutoregressivePipeline",
    "SashimiBackbone",
    "SashimiDenoiser",
    "SashimiPipeline",
    "WaveNetDenoiser",
]
__version__ = version("sashimi-diffusion")


def __getattr__(name: str) -> Any:
    # Imported at first use: reading audio or evaluating clips must not load diffusers' pipelines.
    if name in __all__:
        for package in ("models", "schedulers", "pipelines"):
            module = import_module(f"{__name__}.{package}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
