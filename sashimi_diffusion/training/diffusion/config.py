"""What a diffusion run can be told beside what every run can."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from sashimi_diffusion.models import SashimiDenoiser, WaveNetDenoiser
from sashimi_diffusion.training.config import (
    DataConfig,
    ModelConfig,
    RunConfig,
    require_above_zero,
    require_at_least,
    require_share,
)


@dataclass
class DenoiserConfig(ModelConfig):
    """A denoiser; ``waveform_std: null`` means "measure it on the training data".

    Args:
        name: "sashimi" (SashimiDenoiser) or "wavenet" (WaveNetDenoiser).
        class_conditional: whether the network is told the label; the number and names of classes come from the data.
        arguments: of the network's constructor.
    """

    from_data: ClassVar = (
        *("in_channels", "out_channels", "sample_rate", "sample_size"),
        *("num_classes", "class_names", "num_speakers", "speaker_names"),
    )
    measured: ClassVar = ("waveform_std",)
    networks: ClassVar = {"sashimi": SashimiDenoiser, "wavenet": WaveNetDenoiser}

    name: Literal["sashimi", "wavenet"] = "sashimi"
    class_conditional: bool = False


@dataclass
class MelConfig:
    """The spectrogram that conditions a vocoder; the hop is the product of ``model.mel_upsample``, the bands
    ``model.mel_channels``."""

    n_fft: int = 1024
    f_min: float = 0.0
    f_max: float = 8000.0


@dataclass
class WaveformDataConfig(DataConfig):
    """Recordings as waveforms; those shorter than ``length`` are padded with zeros.

    Args:
        speakers: folder only: the field of ``pattern`` that says who speaks, or "folder"; the network is told it beside
            the label. null: it is not told.
        normalize_rms: scale each recording to this root mean square (as a whole, before it is cut); null: as it is.
        gain_db: random gain, uniform within plus or minus so many decibels.
        mel: the conditioning spectrogram of a vocoder.
    """

    speakers: str | None = None
    normalize_rms: float | None = None
    gain_db: float = 0.0
    mel: MelConfig = field(default_factory=MelConfig)


@dataclass
class ScheduleConfig:
    """The diffusion: DiffWaveScheduler's arguments."""

    num_train_timesteps: int = 200
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"


@dataclass
class ObjectiveConfig:
    """The loss.

    Args:
        min_snr_gamma: gamma of Min-SNR weighting (Hang et al. 2023, arXiv 2303.09556); null: the plain mean square.
        label_dropout: share of the examples whose label and speaker are hidden, so that classifier-free guidance is
            possible.
    """

    min_snr_gamma: float | None = None
    label_dropout: float = 0.1


@dataclass
class SamplingConfig:
    """The samples drawn while training.

    Args:
        num_samples: how many; a class-conditional model goes through its classes, and with each round of them to its
            next speaker.
        steps: denoising steps.
        scheduler: name for ``create_scheduler``; null: the training schedule's own sampler.
        guidance_scale: of classifier-free guidance; 1: none. The pipeline keeps it as its own.
        seed: of the noise.
    """

    num_samples: int = 8
    steps: int = 50
    scheduler: str | None = "ddim"
    guidance_scale: float = 1.0
    seed: int = 0


@dataclass
class DiffusionConfig(RunConfig):
    """A whole diffusion run."""

    fixed: ClassVar = ("seed", "model", "data", "schedule", "objective")

    output_dir: str = "runs/diffwave"
    model: DenoiserConfig = field(default_factory=DenoiserConfig)
    data: WaveformDataConfig = field(default_factory=WaveformDataConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def check(self) -> None:
        """Raise UserError for a number no run can use."""
        super().check()
        require_at_least(
            self,
            {
                "data.gain_db": 0,
                "schedule.num_train_timesteps": 1,
                "sampling.num_samples": 0,
                "sampling.steps": 1,
            },
        )
        require_above_zero(self, ["objective.min_snr_gamma", "data.normalize_rms"])
        require_share(self, ["objective.label_dropout"])
