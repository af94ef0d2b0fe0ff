"""The networks a config can name."""

from diffusers import ModelMixin

from sashimi_diffusion import models


def model_class(head: str, name: str) -> type[ModelMixin]:
    """What a config of the ``head`` "diffusion" or "autoregressive" calls ``name``."""
    return {
        ("diffusion", "sashimi"): models.SashimiDenoiser,
        ("diffusion", "wavenet"): models.WaveNetDenoiser,
        ("autoregressive", "sashimi"): models.SashimiAutoregressive,
        ("autoregressive", "wavenet"): models.WaveNetAutoregressive,
        ("autoregressive", "samplernn"): models.SampleRNN,
    }[head, name]
