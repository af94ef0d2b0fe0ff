"""The networks: the SaShiMi backbone, the diffusion and autoregressive heads built on it, and the paper's baselines."""

from sashimi_diffusion.models.autoregressive import SashimiAutoregressive
from sashimi_diffusion.models.autoregressive_base import AutoregressiveModel
from sashimi_diffusion.models.backbone import SashimiBackbone
from sashimi_diffusion.models.denoiser import SashimiDenoiser
from sashimi_diffusion.models.output import DenoiserOutput
from sashimi_diffusion.models.sample_rnn import SampleRNN
from sashimi_diffusion.models.wavenet import WaveNetDenoiser
from sashimi_diffusion.models.wavenet_autoregressive import WaveNetAutoregressive

__all__ = [
    "AutoregressiveModel",
    "DenoiserOutput",
    "SampleRNN",
    "SashimiAutoregressive",
    "SashimiBackbone",
    "SashimiDenoiser",
    "WaveNetAutoregressive",
    "WaveNetDenoiser",
]
