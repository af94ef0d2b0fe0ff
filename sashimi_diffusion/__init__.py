"""Raw audio generation with state-space models: SaShiMi and DiffWave as diffusers pipelines.

from sashimi_diffusion import SashimiPipeline

pipeline = SashimiPipeline.from_pretrained("sashimi-digits")
audio = pipeline(batch_size=4, num_inference_steps=200).audios  # (4, 1, length)
"""

from importlib.metadata import version

from sashimi_diffusion.models import (
    AutoregressiveModel,
    SashimiAutoregressive,
    SashimiBackbone,
    SashimiDenoiser,
    WaveNetDenoiser,
)
from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline, SashimiPipeline
from sashimi_diffusion.schedulers import DiffWaveScheduler

__all__ = [
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
