"""The networks a config can name."""

from diffusers import ModelMixin

from sashimi_diffusion import models
from sashimi_evaluation import classifiers


def model_class(head: str, name: str) -> type[ModelMixin]:
    """What a config of the ``head`` "diffusion", "autoregressive" or "classifier" calls ``name``."""
    return {
        ("diffusion", "sashimi"): models.SashimiDenoiser,
        ("diffusion", "wavenet"): models.WaveNetDenoiser,
        ("autoregressive", "sashimi"): models.SashimiAutoregressive,
        ("autoregressive", "wavenet"): models.WaveNetAutoregressive,
        ("autoregressive", "samplernn"): models.SampleRNN,
        ("classifier", "small"): classifiers.SmallClassifier,
        ("classifier", "resnext"): classifiers.ResNeXtClassifier,
    }[head, name]
