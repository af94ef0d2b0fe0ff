"""The networks: the SaShiMi backbone, the diffusion denoiser built on it, and the paper's WaveNet baseline."""

from sashimi_diffusion.models.backbone import SashimiBackbone
from sashimi_diffusion.models.denoiser import SashimiDenoiser
from sashimi_diffusion.models.output import DenoiserOutput
from sashimi_diffusion.models.wavenet import WaveNetDenoiser

__all__ = ["DenoiserOutput", "SashimiBackbone", "SashimiDenoiser", "WaveNetDenoiser"]
