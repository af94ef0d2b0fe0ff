"""The diffusion model of the paper: a SaShiMi backbone that predicts the noise in a waveform."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from sashimi_diffusion.models.backbone import SashimiBackbone, estimated_parameters
from sashimi_diffusion.models.blocks import S4, channel_norm
from sashimi_diffusion.models.conditioning import MelUpsampler
from sashimi_diffusion.models.denoiser_base import Denoiser, embedding_parameters, output_head
from sashimi_diffusion.ssm import S4Layer
from sashimi_diffusion.ssm.legacy_s4 import LegacyS4


class SashimiDenoiser(Denoiser):
    """DiffWave's denoiser with a SaShiMi backbone (arXiv 2202.09729, section 5.2; DiffWave, arXiv 2009.09761).

    Every block is bidirectional and receives the step embedding, to which a class-conditional model adds a class
    embedding, and a speaker-conditional model a speaker embedding. A vocoder adds the mel spectrogram in every block.

    Args:
        in_channels, out_channels: audio channels in and out.
        sample_rate: rate of the waveforms in Hz.
        sample_size: number of samples the model was trained on, and the default length to generate.
        waveform_std: divisor of recordings before the diffusion, and factor of generated waveforms.
        pre_emphasis: coefficient of :func:`.pre_emphasize`, which filters recordings before the diffusion; generated
            waveforms pass through its inverse. 0: no filter.
        objective: the training objective, which decides about the schedulers: "diffusion" (noise or velocity at the
            timesteps of a discrete schedule), "flow" (flow matching) or "edm" (EDM preconditioning).
        d_model, n_layers, pool, expand, ff, unet, norm, pooling: see :class:`SashimiBackbone`.
        weight_norm: weight normalization of all pointwise maps except those of the S4 layers and the last one.
        parameterization: "nplr" or "diag" (:class:`StateSpace`), or "legacy" (:class:`LegacyS4`, the layer of the
            published weights; its kernels always have the length ``sample_size``, divided by the pooling factors).
        n_state, n_ssm, initialization, discretization, reverse_shift, dt_min, dt_max: see :class:`StateSpace`.
        kernel_length: maximum length of the kernels in samples of the waveform. The official code truncates them to the
            training length; None does not truncate them.
        embedding_sines, embedding_hidden, embedding_dim: sizes of the diffusion step embedding.
        num_classes: number of classes, or None for an unconditional model. Index ``num_classes`` is the null class.
        class_names: names of the classes, in order.
        num_speakers: number of speakers, or None for a model without speaker conditioning. Index ``num_speakers`` is
            the null speaker.
        speaker_names: names of the speakers, in order.
        mel_channels: mel bands of a vocoder's spectrogram, or None without one.
        mel_upsample: factors whose product is the hop of the spectrogram in samples.
        mel_alignment: "stage" gives every stage the mel at its own rate; "official" gives the pooled stages the
            beginning of the full-rate mel, as the official code does and its vocoder weights need.
        stored_nodes: see :class:`LegacyS4`; for "legacy" only.
        mel_settings: how the spectrograms are computed, a mapping of :class:`.MelSettings`; None: its defaults.
        mel_mean, mel_std: the blocks get (mel - mel_mean) / mel_std. A network learns faster if these values have a
            mean of about 0 and a standard deviation of about 1.
        mel_whitening: whether the diffusion works on waveforms without the spectral envelope in their mel spectrogram,
            see :class:`.MelEnvelope`.

    Raises:
        ValueError: a value of another type or out of its range, or one that does not fit the others.
    """

    # Modules of this name keep float32 parameters when a checkpoint is loaded in another dtype.
    _keep_in_fp32_modules: ClassVar[list[str]] = ["ssm"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        sample_rate: int = 16000,
        sample_size: int = 16000,
        waveform_std: float = 1.0,
        pre_emphasis: float = 0.0,
        objective: str = "diffusion",
        d_model: int = 64,
        n_layers: int | Sequence[int] = 6,
        pool: Sequence[int] = (4, 4),
        expand: int = 2,
        ff: int = 2,
        unet: bool = True,
        norm: str = "scalar",
        weight_norm: bool = True,
        pooling: str = "frames",
        parameterization: str = "nplr",
        n_state: int = 64,
        n_ssm: int | None = None,
        initialization: str = "legs",
        discretization: str = "bilinear",
        reverse_shift: int = 1,
        kernel_length: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        embedding_sines: int = 128,
        embedding_hidden: int = 512,
        embedding_dim: int = 512,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        num_speakers: int | None = None,
        speaker_names: Sequence[str] | None = None,
        mel_channels: int | None = None,
        mel_upsample: Sequence[int] = (16, 16),
        mel_alignment: str = "stage",
        stored_nodes: bool = False,
        mel_settings: Mapping[str, Any] | None = None,
        mel_mean: float = 0.0,
        mel_std: float = 1.0,
        mel_whitening: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            d_model,
            (embedding_sines, embedding_hidden, embedding_dim),
            num_classes,
            num_speakers,
            weight_norm,
        )

        def make_s4(width: int, stage: int) -> S4:
            if parameterization == "legacy":
                return LegacyS4(width, sample_size // math.prod(pool[:stage]), n_state, stored_nodes)
            return S4Layer(
                width,
                n_state=n_state,
                parameterization=parameterization,
                initialization=initialization,
                discretization=discretization,
                bidirectional=True,
                reverse_shift=reverse_shift,
                n_ssm=n_ssm,
                max_length=None if kernel_length is None else kernel_length // math.prod(pool[:stage]),
                dt_min=dt_min,
                dt_max=dt_max,
            )

        def make_mel(width: int, stage: int) -> nn.Module:
            stride = 1 if mel_alignment == "official" else math.prod(pool[:stage])
            return MelUpsampler(mel_upsample, mel_channels or 0, width, stride=stride)

        if mel_alignment not in ("stage", "official"):
            raise ValueError(f"unknown mel_alignment {mel_alignment!r}: expected 'stage' or 'official'")
        self.backbone = SashimiBackbone(
            d_model,
            n_layers,
            pool,
            expand,
            ff,
            make_s4,
            None if mel_channels is None else make_mel,
            unet=unet,
            norm=norm,
            ff_weight_norm=weight_norm,
            pool_weight_norm=weight_norm,
            embedding_dim=embedding_dim,
            pooling=pooling,
        )
        self.output_norm = channel_norm(norm, d_model)
        self.output = output_head(d_model, out_channels, weight_norm)

    @staticmethod
    def estimated_parameters(arguments: Mapping[str, Any]) -> int:
        """Return about how many parameters a network with these arguments has, see :class:`WaveformModel`."""
        nodes = 4 * arguments["sample_size"] if arguments["stored_nodes"] else 0  # in every layer
        per_feature = arguments["embedding_dim"] + (arguments["mel_channels"] or 0)
        backbone = estimated_parameters(arguments, per_feature + nodes // arguments["d_model"])
        return backbone + embedding_parameters(arguments) + arguments["d_model"] ** 2

    @property
    def length_multiple(self) -> int:
        """The product of the pooling factors; the length in :meth:`forward` must be a multiple of it."""
        return self.backbone.length_multiple

    def use_overlapping_pools(self) -> None:
        """Replace published pools by overlapping ones that compute the same, see :func:`.overlapping_pools_like`."""
        self.backbone.use_overlapping_pools()
        # from_config ignores a value that it finds among the defaults.
        defaults = [name for name in self.config.get("_use_default_values", []) if name != "pooling"]
        self.register_to_config(pooling="overlapping", _use_default_values=defaults)

    def predict(self, x: Tensor, embedding: Tensor, mel: Tensor | None) -> Tensor:
        """Return the prediction (B, out_channels, L), see :class:`Denoiser`."""
        x = self.backbone(x, embedding, mel)
        return self.output(self.output_norm(x))
