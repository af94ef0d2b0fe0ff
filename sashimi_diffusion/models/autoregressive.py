"""The autoregressive model of the paper: a causal SaShiMi backbone that predicts the next quantized sample."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from sashimi_diffusion.models import recurrence
from sashimi_diffusion.models.autoregressive_base import AutoregressiveModel
from sashimi_diffusion.models.backbone import SashimiBackbone, estimated_parameters
from sashimi_diffusion.models.blocks import ChannelLayerNorm
from sashimi_diffusion.models.recurrence import BackboneState
from sashimi_diffusion.ssm import S4Layer
from sashimi_diffusion.ssm.pointwise import Pointwise


class SashimiAutoregressive(AutoregressiveModel):
    """The autoregressive SaShiMi on quantized audio (arXiv 2202.09729, section 4 and appendix C).

    Args:
        num_tokens: number of quantization levels.
        quantization: "mu-law" or "linear", see :mod:`sashimi_diffusion.data.quantization`.
        sample_rate: rate of the waveforms in Hz.
        sample_size: number of samples the model was trained on, and the default length to generate.
        d_model, n_layers, pool, expand, ff, norm: see :class:`SashimiBackbone`.
        unet: False builds the network of the paper: blocks only in the center and on the way up, a skip connection
            around each stage, and weight normalization of the pools. True builds the official "sashimi-sc09-unet":
            blocks on the way down, too, a skip connection around every layer, and no weight normalization.
        parameterization, n_state, n_ssm, initialization, discretization, dt_min, dt_max, stable: see
            :class:`StateSpace`.

    Raises:
        ValueError: an unknown name, a value of another type or out of its range, or values that do not fit together.
    """

    _supports_gradient_checkpointing = True
    # Modules of this name keep float32 parameters when a checkpoint is loaded in another dtype.
    _keep_in_fp32_modules: ClassVar[list[str]] = ["ssm"]

    @register_to_config
    def __init__(
        self,
        num_tokens: int = 256,
        quantization: str = "mu-law",
        sample_rate: int = 16000,
        sample_size: int = 16000,
        d_model: int = 64,
        n_layers: int | Sequence[int] = 8,
        pool: Sequence[int] = (4, 4),
        expand: int = 2,
        ff: int = 2,
        unet: bool = False,
        norm: str = "scalar",
        parameterization: str = "nplr",
        n_state: int = 64,
        n_ssm: int | None = None,
        initialization: str = "legs",
        discretization: str = "bilinear",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        stable: bool = True,
    ) -> None:
        super().__init__()

        def make_s4(width: int, stage: int) -> S4Layer:
            return S4Layer(
                width,
                n_state=n_state,
                parameterization=parameterization,
                initialization=initialization,
                discretization=discretization,
                n_ssm=n_ssm,
                dt_min=dt_min,
                dt_max=dt_max,
                stable=stable,
            )

        self.embedding = nn.Embedding(num_tokens, d_model)
        self.backbone = SashimiBackbone(
            d_model,
            n_layers,
            pool,
            expand,
            ff,
            make_s4,
            unet=unet,
            causal_pools=True,
            split_blocks=unet,
            stage_skip=not unet,
            norm=norm,
            ff_weight_norm=False,
            pool_weight_norm=not unet,
        )
        self.output_norm = ChannelLayerNorm(d_model)
        self.output = Pointwise(d_model, num_tokens)

    @staticmethod
    def estimated_parameters(arguments: Mapping[str, Any]) -> int:
        """Return about how many parameters a network with these arguments has, see :class:`WaveformModel`."""
        return estimated_parameters(arguments, 0) + 2 * arguments["num_tokens"] * arguments["d_model"]

    @property
    def length_multiple(self) -> int:
        """The product of the pooling factors; the length in :meth:`forward` must be a multiple of it."""
        return self.backbone.length_multiple

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (B, num_tokens, L) for the inputs ``tokens`` (B, L), see :class:`AutoregressiveModel`."""
        self.require_length(tokens.shape[-1], self.length_multiple)
        return self._logits(self.backbone(self._embedded(tokens)))

    def initial_state(self, batch_size: int) -> BackboneState:
        """Return the state before the first input."""
        return recurrence.initial_state(self.backbone, batch_size)

    def step(self, tokens: Tensor, state: BackboneState) -> tuple[Tensor, BackboneState]:
        """Run one recurrence step: logits (B, num_tokens) and the next state, see :class:`AutoregressiveModel`."""
        y, state = recurrence.step(self.backbone, self.embedding(tokens), state)
        return self._logits(y.unsqueeze(-1)).squeeze(-1), state

    def prefill(self, tokens: Tensor, state: BackboneState | None = None) -> tuple[Tensor, BackboneState]:
        """Process many inputs: logits (B, num_tokens, L) and the next state, see :class:`AutoregressiveModel`."""
        self.require_length(tokens.shape[-1])
        y, state = recurrence.prefill(self.backbone, self._embedded(tokens), state)
        return self._logits(y), state

    def _embedded(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens).transpose(1, 2)  # (B, d_model, L)

    def _logits(self, y: Tensor) -> Tensor:
        return self.output(self.output_norm(y))
