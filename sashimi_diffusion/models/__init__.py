"""Networks: the SaShiMi backbone, the diffusion and autoregressive models built on it, and the paper's baselines."""

from sashimi_diffusion.models.autoregressive import SashimiAutoregressive
from sashimi_diffusion.models.autoregressive_base import AutoregressiveModel
from sashimi_diffusion.models.backbone import SashimiBackbone
from sashimi_diffusion.models.denoiser import SashimiDenoiser
from sashimi_diffusion.models.denoiser_base import Denoiser, DenoiserOutput
from sashimi_diffusion.models.sample_rnn import SampleRNN
from sashimi_diffusion.models.wavenet import WaveNetDenoiser
from sashimi_diffusion.models.wavenet_autoregressive import WaveNetAutoregressive

__all__ = [
    "AutoregressiveModel",
    "Denoiser",
    "DenoiserOutput",
    "SampleRNN",
    "SashimiAutoregressive",
    "SashimiBackbone",
    "SashimiDenoiser",
    "WaveNetAutoregressive",
    "WaveNetDenoiser",
]
