"""What the training of a digit classifier can be told beside what every run can."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.config import (
    ModelConfig,
    RunConfig,
    require_at_least,
    require_share,
)
from sashimi_evaluation.classifiers import ResNeXtClassifier, SmallClassifier


@dataclass
class ClassifierModelConfig(ModelConfig):
    """A classifier.

    Args:
        name: "small" (SmallClassifier) or "resnext" (ResNeXtClassifier).
        embedding: small only: the speech embedding that its head listens to, and that is not trained: the bundled
            "speech-embedding", or a folder.
        arguments: of the network's constructor.
    """

    from_data: ClassVar = ("num_classes", "channels")
    networks: ClassVar = {"small": SmallClassifier, "resnext": ResNeXtClassifier}

    name: Literal["small", "resnext"] = "small"
    embedding: str | None = None


@dataclass
class SourceConfig:
    """A set of recordings of one spoken digit each, named "7" or "seven".

    Args:
        kind: "speech_commands" (its ten digits, its official split) or "folder".
        path: the folder; null: this source is left out.
        download: speech_commands only: fetch the data set into ``path`` when it is not there.
        pattern: folder only: file names as fields, for instance "{label}_{speaker}_{index}"; null: the digits are the
            names of the sub-folders.
        where: folder only: keep the files whose field has one of these values, for instance {speaker: [theo]}.
        holdout: folder only: the validation files, by field and values, for instance {speaker: [theo]}; null: a share
            of the files chosen by ``splits``.
        splits: folder only: shares of files for training, validation and test.
        test: the split of the figures at the end; "validation" where it has chosen nothing while training.
        cache_dir: where decoded audio is kept; null: the data module's own place.
    """

    kind: Literal["speech_commands", "folder"] = "folder"
    path: str | None = None
    download: bool = False
    pattern: str | None = None
    where: dict[str, list[str | int]] = field(default_factory=dict)
    holdout: dict[str, list[str | int]] | None = None
    splits: list[float] = field(default_factory=lambda: [0.88, 0.06, 0.06])
    test: Literal["validation", "test"] = "validation"
    cache_dir: str | None = None


@dataclass
class SourcesConfig:
    """What to train on.

    Args:
        sources: sets of recordings by names of one's own, which the figures carry.
        balance: all digits are trained on equally often; so are the sources of a digit with 1, while with 0 all
            recordings of a digit are. In between, a source of n recordings weighs n to the power of 1 - balance.
    """

    least: ClassVar[dict[str, int]] = {}

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    balance: float = 1.0


@dataclass
class AugmentationConfig:
    """What is done to a training recording, anew each time; see :mod:`.classifier_augmentation`.

    Args:
        speed: played faster or slower, and so higher or lower, by up to this factor; 1: never.
        gain_db: louder or softer by up to so many decibels.
        tilt_db: treble raised or lowered by up to so many decibels an octave.
        filter_share: share of the recordings that go through a band-pass, as through a telephone.
        noise_share: share of the recordings with noise, from white to brown.
        noise_db: the noise lies so many decibels below the recording: least and most.
        mask_share: share of the recordings with a silenced stretch, and share of those without a band of frequencies
            (SpecAugment, arXiv 1904.08779).
    """

    speed: float = 1.18
    gain_db: float = 6.0
    tilt_db: float = 3.0
    filter_share: float = 0.3
    noise_share: float = 0.5
    noise_db: list[float] = field(default_factory=lambda: [5.0, 40.0])
    mask_share: float = 0.3


@dataclass
class ClassificationConfig:
    """The loss, a cross-entropy.

    Args:
        label_smoothing: share of a target that is spread over all digits (arXiv 1512.00567, section 7).
    """

    label_smoothing: float = 0.0


@dataclass
class ClassifierConfig(RunConfig):
    """The whole training of a classifier."""

    fixed: ClassVar = ("seed", "model", "data", "augmentation", "objective")

    output_dir: str = "runs/digit-classifier"
    model: ClassifierModelConfig = field(default_factory=ClassifierModelConfig)
    data: SourcesConfig = field(default_factory=SourcesConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    objective: ClassificationConfig = field(default_factory=ClassificationConfig)

    def check(self) -> None:
        """Raise UserError for a number no run can use."""
        super().check()
        if (self.model.name == "small") != (self.model.embedding is not None):
            wanted = "speech-embedding, or the folder of another" if self.model.name == "small" else "null"
            raise UserError(
                f"model.embedding is {self.model.embedding}: with model.name={self.model.name} it must be {wanted}"
            )
        require_at_least(self, {"augmentation.speed": 1, "augmentation.gain_db": 0, "augmentation.tilt_db": 0})
        require_share(self, ["objective.label_smoothing"])
        shares = {"data.balance": self.data.balance} | {
            f"augmentation.{name}": getattr(self.augmentation, name)
            for name in ("filter_share", "noise_share", "mask_share")
        }
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise UserError(f"{name} is {value}: it must be at least 0 and at most 1")
        noise = self.augmentation.noise_db
        if len(noise) != 2 or noise[0] > noise[1]:
            raise UserError(f"augmentation.noise_db is {noise}: it must be two numbers, the lower first")
