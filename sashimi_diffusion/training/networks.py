"""The networks a config can name."""

from diffusers import ModelMixin


def model_class(name: str) -> type[ModelMixin]:
    """The denoiser a config calls ``name``."""
    if name == "wavenet":
        from sashimi_diffusion.models.wavenet import WaveNetDenoiser

        return WaveNetDenoiser
    from sashimi_diffusion.models.denoiser import SashimiDenoiser

    return SashimiDenoiser
