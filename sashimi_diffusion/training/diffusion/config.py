"""Configuration of diffusion training."""

from typing import ClassVar, Literal

from pydantic import Field

from sashimi_diffusion.models import SashimiDenoiser, WaveNetDenoiser
from sashimi_diffusion.training.config import DataConfig, RunConfig
from sashimi_diffusion.training.model_config import ModelConfig
from sashimi_diffusion.training.settings import Settings


class DenoiserConfig(ModelConfig):
    """The denoiser and the arguments of its constructor. With ``waveform_std: null``, the run measures that value."""

    networks: ClassVar = {"sashimi": SashimiDenoiser, "wavenet": WaveNetDenoiser}
    from_data: ClassVar = (
        *("in_channels", "out_channels", "sample_rate", "sample_size"),
        *("num_classes", "class_names", "num_speakers", "speaker_names"),
    )
    measured: ClassVar = ("waveform_std",)

    name: Literal["sashimi", "wavenet"] = Field(
        default="sashimi", description='"sashimi" (SashimiDenoiser) or "wavenet" (WaveNetDenoiser)'
    )
    class_conditional: bool = Field(
        default=False,
        description="condition the network on the label; the data determine the number and the names of the classes",
    )


class MelConfig(Settings):
    """The mel spectrogram of a vocoder. ``model.mel_upsample`` sets its hop, ``model.mel_channels`` its bands."""

    n_fft: int = Field(default=1024, description="samples in a window")
    f_min: float = Field(default=0.0, description="lower edge of the first band in Hz")
    f_max: float = Field(default=8000.0, description="upper edge of the last band in Hz")


class WaveformDataConfig(DataConfig):
    """The recordings, as waveforms. Those shorter than ``length`` are padded with zeros."""

    speakers: str | None = Field(
        default=None,
        description="folder only: condition the network also on the speaker; the field of `pattern` that contains it, "
        'or "folder" for the first sub-folder; null: no speakers',
    )
    normalize_rms: float | None = Field(
        default=None,
        gt=0,
        description="scale each whole recording to this root mean square; null: no scaling",
    )
    gain_db: float = Field(default=0.0, ge=0, description="random gain, uniform in plus or minus this many decibels")
    mel: MelConfig = Field(default_factory=MelConfig)


class ScheduleConfig(Settings):
    """The noise schedule: arguments of DiffWaveScheduler."""

    num_train_timesteps: int = Field(default=200, ge=1, description="diffusion steps T")
    beta_start: float = Field(default=1e-4, description="first beta of the linear schedule")
    beta_end: float = Field(default=0.02, description="last beta of the linear schedule")
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = Field(
        default="linear", description='"linear" or "squaredcos_cap_v2" (cosine)'
    )
    prediction_type: Literal["epsilon", "v_prediction"] = Field(
        default="epsilon", description='the network predicts the noise ("epsilon") or the velocity ("v_prediction")'
    )


class ObjectiveConfig(Settings):
    """The loss."""

    min_snr_gamma: float | None = Field(
        default=None,
        gt=0,
        description="gamma of Min-SNR weighting (Hang et al. 2023, arXiv 2303.09556); null: no weighting",
    )
    label_dropout: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="share of the examples without label and speaker, for classifier-free guidance",
    )


class SamplingConfig(Settings):
    """The samples drawn during training."""

    num_samples: int = Field(
        default=8,
        ge=0,
        description="number of samples; the class changes with each sample, the speaker after each round of classes; "
        "0: none",
    )
    steps: int = Field(default=50, ge=1, description="sampling steps")
    scheduler: str | None = Field(
        default="ddim", description="a name for `create_scheduler`; null: the sampler of the training schedule"
    )
    guidance_scale: float = Field(
        default=1.0,
        description="scale of classifier-free guidance, also the default of the saved pipeline; 1: no guidance",
    )
    seed: int = Field(default=0, description="seed of the noise")


class DiffusionConfig(RunConfig):
    """Configuration of diffusion training."""

    fixed: ClassVar = ("seed", "model", "data", "schedule", "objective")

    output_dir: str = Field(default="runs/diffwave", description="the run folder")
    model: DenoiserConfig = Field(default_factory=DenoiserConfig)
    data: WaveformDataConfig = Field(default_factory=WaveformDataConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
