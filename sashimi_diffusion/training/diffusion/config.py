"""Configuration of diffusion training."""

import math
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.data.mel import MAX_WINDOW, MelSettings
from sashimi_diffusion.data.names import field_names, require
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import SashimiDenoiser, WaveNetDenoiser
from sashimi_diffusion.schedulers.compatible import ALL_SCHEDULERS
from sashimi_diffusion.schedulers.diffwave import MAX_TRAIN_TIMESTEPS
from sashimi_diffusion.suggestions import did_you_mean
from sashimi_diffusion.training.config import MAX_SAMPLES, RunConfig, TrainingConfig
from sashimi_diffusion.training.data_config import MAX_RATE, DataConfig
from sashimi_diffusion.training.model_config import ModelConfig
from sashimi_diffusion.training.settings import PositiveFinite, Seed, Settings, Text


class DenoiserConfig(ModelConfig):
    """The denoiser and the arguments of its constructor. With ``waveform_std: null``, the run measures that value."""

    networks: ClassVar = {"sashimi": SashimiDenoiser, "wavenet": WaveNetDenoiser}
    from_data: ClassVar = (
        *("out_channels", "sample_rate", "sample_size", "mel_settings"),
        *("num_classes", "class_names", "num_speakers", "speaker_names", "objective"),
    )
    measured: ClassVar = ("waveform_std",)

    name: Literal["sashimi", "wavenet"] = Field(
        default="sashimi", description='"sashimi" (SashimiDenoiser) or "wavenet" (WaveNetDenoiser)'
    )
    class_conditional: bool | None = Field(
        default=False,
        description="condition the network on the label; the data determine the number and the names of the classes; "
        "null: if the recordings have labels",
    )


class MelConfig(Settings):
    """The mel spectrogram of a vocoder. ``model.mel_upsample`` sets its hop, ``model.mel_channels`` its bands."""

    n_fft: int = Field(default=1024, ge=2, le=MAX_WINDOW, description="samples in a Fourier transform")
    win_length: int | None = Field(
        default=None, ge=2, le=MAX_WINDOW, description="samples in a window, a periodic Hann window; null: n_fft"
    )
    f_min: float = Field(default=0.0, ge=0, le=MAX_RATE, description="lower edge of the first band in Hz")
    f_max: float = Field(default=8000.0, gt=0, le=MAX_RATE, description="upper edge of the last band in Hz")
    mel_scale: Literal["slaney", "htk"] = Field(default="slaney", description='"slaney" or "htk"')
    norm: Literal["slaney"] | None = Field(
        default="slaney", description='"slaney": bands of unit area; null: bands with the peak 1'
    )
    power: Literal[1, 2] = Field(default=1, description="1: bands of magnitudes; 2: bands of power")
    log: Literal["natural", "log10", "db"] = Field(
        default="natural", description='"natural", "log10", or "db" (20 log10 of magnitudes, 10 log10 of power)'
    )
    floor: float = Field(default=1e-5, ge=1e-30, le=1, description="smaller values are replaced by this one")
    padding: Literal["center", "hop"] = Field(
        default="center",
        description='"center": 1 + length // hop frames; "hop": length // hop frames, as in HiFi-GAN',
    )

    @property
    def settings(self) -> MelSettings:
        """The settings that the transform and the saved network take."""
        return MelSettings(**self.model_dump())


class WaveformDataConfig(DataConfig):
    """The recordings, as waveforms. Those shorter than ``length`` are padded with zeros."""

    speakers: Text | None = Field(
        default=None,
        description="condition the network also on the speaker; folder: the field of `pattern` that contains it, or "
        '"folder" for the first sub-folder; hf_dataset: a column; webdataset: as `label_column`; null: no speakers',
    )
    normalize_rms: float | None = Field(
        default=None,
        ge=1e-9,  # below the quietest sample of 24 bits
        le=1e3,  # full scale is 1
        description="scale each whole recording to this root mean square; null: no scaling",
    )
    gain_db: float = Field(
        default=0.0,
        ge=0,
        le=200,  # a factor of ten billion
        description="random gain, uniform in plus or minus this many decibels",
    )
    mel: MelConfig = Field(default_factory=MelConfig)

    @model_validator(mode="after")
    def _check_speakers(self) -> "WaveformDataConfig":
        if self.kind == "folder" and self.speakers is not None:
            fields = "the fields are" if self.pattern is None else f"the fields of {short_form(self.pattern)} are"
            require(self.speakers, field_names(self.pattern), "data.speakers names the field", fields)
        return self


class ScheduleConfig(Settings):
    """The noise schedule: arguments of DiffWaveScheduler."""

    num_train_timesteps: int = Field(default=200, ge=1, le=MAX_TRAIN_TIMESTEPS, description="diffusion steps T")
    beta_start: float = Field(default=1e-4, gt=0, lt=1, description="first beta of the linear schedule")
    beta_end: float = Field(default=0.02, gt=0, lt=1, description="last beta of the linear schedule")
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = Field(
        default="linear", description='"linear" or "squaredcos_cap_v2" (cosine)'
    )
    prediction_type: Literal["epsilon", "v_prediction"] = Field(
        default="epsilon", description='the network predicts the noise ("epsilon") or the velocity ("v_prediction")'
    )
    rescale_betas_zero_snr: bool = Field(
        default=False,
        description="scale the schedule so that it ends in pure noise (arXiv 2305.08891), with v_prediction only",
    )

    @model_validator(mode="after")
    def _check_terminal_snr(self) -> "ScheduleConfig":
        if self.rescale_betas_zero_snr and self.prediction_type != "v_prediction":
            raise UserError(
                "schedule.rescale_betas_zero_snr is true: it needs schedule.prediction_type=v_prediction, because pure "
                "noise says nothing about the waveform"
            )
        return self


class ObjectiveConfig(Settings):
    """The loss."""

    name: Literal["diffusion", "flow", "edm"] = Field(
        default="diffusion",
        description='"diffusion": the noise or the velocity (schedule.prediction_type) at the timesteps of a discrete '
        'schedule; "flow": flow matching (rectified flow, arXiv 2209.03003); "edm": EDM preconditioning (arXiv '
        "2206.00364); the last two use schedule.num_train_timesteps only",
    )
    noise_mean: float | None = Field(
        default=None,
        ge=-10,
        le=10,
        description="mean of the logarithm of the noise level (deviation of the noise over that of the signal) of the "
        'examples, which is normal for "flow" (logit-normal times, arXiv 2403.03206) and "edm"; null: 0 for "flow", '
        '-1.2 for "edm"',
    )
    noise_std: float | None = Field(
        default=None, gt=0, le=10, description='its standard deviation; null: 1 for "flow", 1.2 for "edm"'
    )
    min_snr_gamma: PositiveFinite | None = Field(
        default=None,
        description="gamma of Min-SNR weighting (Hang et al. 2023, arXiv 2303.09556); null: no weighting",
    )
    timestep_exponent: float = Field(
        default=1.0,
        ge=0.1,
        le=10,
        description="exponent e of the timesteps T uᵉ of the examples, with u uniform in [0, 1): above 1, more "
        "examples have little noise, and with little noise weak bands are learned; 1: uniform",
    )
    label_dropout: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="share of the examples without label and speaker, for classifier-free guidance",
    )

    @property
    def distribution(self) -> tuple[float, float]:
        """Mean and standard deviation of the logarithm of the noise level, for "flow" and "edm"."""
        mean, std = (0.0, 1.0) if self.name == "flow" else (-1.2, 1.2)
        return (
            mean if self.noise_mean is None else self.noise_mean,
            std if self.noise_std is None else self.noise_std,
        )

    @model_validator(mode="after")
    def _check_name(self) -> "ObjectiveConfig":
        discrete = self.name == "diffusion"
        unused = ("noise_mean", "noise_std") if discrete else ("min_snr_gamma", "timestep_exponent")
        for name in unused:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise UserError(f"objective.{name} has no effect with objective.name={self.name}: leave it out")
        return self


class SamplingConfig(Settings):
    """The samples drawn during training."""

    num_samples: int = Field(
        default=8,
        ge=0,
        le=MAX_SAMPLES,
        description="number of samples; the class changes with each sample, the speaker after each round of classes; "
        "0: none",
    )
    steps: int = Field(default=50, ge=1, le=MAX_TRAIN_TIMESTEPS, description="sampling steps")
    scheduler: Text | None = Field(
        default="ddim", description="a name for `create_scheduler`; null: the sampler of the training schedule"
    )
    guidance_scale: float | None = Field(
        default=1.0,
        ge=-1000,
        le=1000,  # useful scales are below 10
        description="scale of classifier-free guidance, also the default of the saved pipeline; 1: no guidance; null: "
        "2 for a network with classes or speakers, 1 for another",
    )
    seed: Seed = Field(default=0, description="seed of the noise")

    def guidance(self, conditional: bool) -> float:
        """Return the scale of guidance for a network with or without classes or speakers.

        Raises:
            UserError: the settings ask for guidance of a network that has neither.
        """
        if self.guidance_scale is None:
            return 2.0 if conditional else 1.0
        if self.guidance_scale != 1 and not conditional:
            raise UserError(
                f"sampling.guidance_scale is {self.guidance_scale}: without classes (model.class_conditional) or "
                "speakers (data.speakers) it can only be 1"
            )
        return self.guidance_scale

    @field_validator("scheduler")
    @classmethod
    def _check_scheduler(cls, value: str | None) -> str | None:
        if value is not None and value not in ALL_SCHEDULERS:
            raise UserError(
                f"sampling.scheduler names an unknown scheduler {short_form(value)}"
                f"{did_you_mean(value, ALL_SCHEDULERS)} (known: {', '.join(ALL_SCHEDULERS)})"
            )
        return value


class DiffusionTrainingConfig(TrainingConfig):
    """The length of a run, the size of its batches, when it writes what, and the weights that it starts from."""

    initial_pipeline: Text | None = Field(
        default=None,
        description="start from the network of this pipeline, a folder or the name of a bundled one; settings of the "
        "network and the schedule must be its own; new speakers are added, see also `transfer`; null: a new network",
    )
    transfer: bool = Field(
        default=False,
        description="with `initial_pipeline`: the network has its weights and settings, but the classes and speakers "
        "of the recordings; with k times its sample rate, `model.pool` begins with k times its first factor",
    )
    lora_rank: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="with `initial_pipeline`: train only LoRA adapters of this rank (arXiv 2106.09685) and the "
        "embeddings of new speakers; needs peft; null: train all weights",
    )

    validate_bound: bool = Field(
        default=False,
        description="log the variational bound of the likelihood at every validation, in bits per 16-bit sample; it "
        "takes twice as long as the rest of the validation",
    )

    @model_validator(mode="after")
    def _check_initial(self) -> "DiffusionTrainingConfig":
        if self.lora_rank is not None and self.initial_pipeline is None:
            raise UserError(
                "training.lora_rank adapts a trained network: give one with training.initial_pipeline, for instance "
                "training.initial_pipeline=sashimi-digits"
            )
        if self.transfer and self.initial_pipeline is None:
            raise UserError("training.transfer needs the weights of a pipeline: name it with training.initial_pipeline")
        if self.transfer and self.lora_rank is not None:
            raise UserError(
                "training.transfer trains all weights, and training.lora_rank only adapters: set one of them to null "
                "or false"
            )
        return self


class DiffusionConfig(RunConfig):
    """Configuration of diffusion training."""

    fixed: ClassVar[tuple[str, ...]] = ("seed", "model", "data", "schedule", "objective")
    automatic: ClassVar = ("model.class_conditional",)
    fixed_training: ClassVar = ("lora_rank", "transfer")

    output_dir: Text = Field(default="runs/diffwave", description="the run folder")
    model: DenoiserConfig = Field(default_factory=DenoiserConfig)
    data: WaveformDataConfig = Field(default_factory=WaveformDataConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    training: DiffusionTrainingConfig = Field(default_factory=DiffusionTrainingConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)

    @model_validator(mode="after")
    def _check_sampling(self) -> "DiffusionConfig":
        sampling, timesteps = self.sampling, self.schedule.num_train_timesteps
        if self.objective.name != "diffusion" and self.schedule.rescale_betas_zero_snr:
            raise UserError(
                f"schedule.rescale_betas_zero_snr has no effect with objective.name={self.objective.name}: leave it out"
            )
        if sampling.steps > timesteps:
            raise UserError(
                f"sampling.steps is {sampling.steps}: it must not exceed schedule.num_train_timesteps={timesteps}"
            )
        if self.model.class_conditional is False and self.data.speakers is None:
            self.sampling.guidance(conditional=False)
        return self

    @property
    def channels(self) -> int:
        """Audio channels of the network and of the recordings."""
        return self.model.argument("in_channels")

    @model_validator(mode="after")
    def _check_mel(self) -> "DiffusionConfig":
        data, mel = self.data, self.data.mel
        if self.model.argument("mel_channels") is None:
            if self.model.argument("mel_whitening"):
                raise UserError("model.mel_whitening is true, but model.mel_channels is null: set one of them")
            return self
        if self.channels != 1:
            raise UserError(
                f"model.in_channels is {self.channels}: a vocoder (model.mel_channels) has one channel; remove one of "
                "them"
            )
        if not mel.f_min < mel.f_max <= data.sample_rate / 2:
            raise UserError(
                f"data.mel.f_min is {mel.f_min:g} and data.mel.f_max is {mel.f_max:g}: expected f_min < f_max <= "
                f"{data.sample_rate / 2:g}, half of data.sample_rate"
            )
        if data.length <= mel.n_fft // 2:
            raise UserError(
                f"data.mel.n_fft is {mel.n_fft}: it must be less than twice data.length={data.length}, because the "
                "spectrogram needs more than half a window"
            )
        hop = math.prod(self.model.argument("mel_upsample"))
        if mel.padding == "hop" and data.length % hop:
            raise UserError(
                f"data.length is {data.length}: with data.mel.padding=hop it must be a multiple of the hop, {hop} "
                f"samples (the product of model.mel_upsample): {math.ceil(data.length / hop) * hop} is the next"
            )
        if self.model.argument("mel_whitening") and self.training.validate_bound:
            raise UserError("training.validate_bound is true, but model.mel_whitening leaves no bound: set it to false")
        try:
            mel.settings.check(data.sample_rate, hop)
        except UserError as error:
            raise UserError(f"data.mel: {error}") from error
        return self
