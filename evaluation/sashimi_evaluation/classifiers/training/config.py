"""Configuration of classifier training."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.data.speech_commands import DIGITS
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.config import RunConfig
from sashimi_diffusion.training.data_config import Pattern, Splits, Words
from sashimi_diffusion.training.model_config import ModelConfig
from sashimi_diffusion.training.settings import Settings, Text, Values
from sashimi_evaluation.classifiers import ResNeXtClassifier, SmallClassifier

MAX_DECIBELS = 200
"""A factor of ten billion, far more than between the loudest and the quietest sample of 24 bits."""


class ClassifierModelConfig(ModelConfig):
    """The classifier and the arguments of its constructor."""

    networks: ClassVar = {"small": SmallClassifier, "resnext": ResNeXtClassifier}
    from_data: ClassVar = ("num_classes", "class_names", "channels")

    name: Literal["small", "resnext"] = Field(
        default="small", description='"small" (SmallClassifier) or "resnext" (ResNeXtClassifier)'
    )
    embedding: Text | None = Field(
        default=None,
        description="small only: the speech embedding below the head, which is not trained; the bundled "
        '"speech-embedding" or a folder',
    )


class SourceConfig(Settings):
    """A set of recordings of one spoken word each. Their classes are named like the words; "7" is "seven"."""

    kind: Literal["speech_commands", "folder"] = Field(
        default="folder", description='"speech_commands" (official split) or "folder"'
    )
    path: Text | None = Field(default=None, description="folder of the recordings; null: do not use this source")
    download: bool = Field(
        default=False, description="speech_commands only: download the data set into `path` if it is not there"
    )
    more_paths: list[Text] = Field(
        default=[],
        description="speech_commands only: further folders with words, each with its own lists of the splits",
    )
    words: Words | None = Field(
        default=None, description="speech_commands only: the words of this source; null: all of `data.words`"
    )
    pattern: Pattern | None = Field(
        default=None,
        description='folder only: fields in the file names, for instance "{label}_{speaker}_{index}"; null: the names '
        "of the sub-folders are the words",
    )
    where: dict[str, Values] = Field(
        default={},
        description="folder only: use only files whose field has one of these values, for instance {speaker: [theo]}",
    )
    holdout: dict[str, Values] | None = Field(
        default=None,
        description="folder only: use files whose field has one of these values for validation, for instance "
        "{speaker: [theo]}; null: `splits` selects them",
    )
    splits: Splits = Field(
        default=[0.88, 0.06, 0.06], description="folder only: shares of the files for training, validation and test"
    )
    test: Literal["validation", "test"] = Field(
        default="validation",
        description='split of the metrics at the end of the run; "validation" is unbiased only if validation results '
        "do not affect the training",
    )
    cache_dir: Text | None = Field(default=None, description="folder for decoded audio; null: the user's cache folder")

    @model_validator(mode="after")
    def _check_kind(self) -> "SourceConfig":
        for name in ("more_paths", "words"):
            if getattr(self, name) and self.kind == "folder":
                raise ValueError(f"{name} needs kind: speech_commands")
        return self


class SourcesConfig(Settings):
    """The recordings to train on."""

    words: Words | None = Field(
        default=None, description="the words that the classifier distinguishes, in this order; null: the ten digits"
    )
    sources: dict[str, SourceConfig] = Field(
        default={}, description="sets of recordings by name; you choose the names, which appear in the metrics"
    )
    balance: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="how often the sources are used: for each word, the probability of a source with n recordings is "
        "proportional to n^(1 - balance); 1: all sources equally often, 0: all recordings equally often",
    )

    @property
    def class_names(self) -> list[str]:
        """The words that the classifier distinguishes, in order."""
        return list(self.words or DIGITS)


class AugmentationConfig(Settings):
    """Random changes to each training recording; see :mod:`sashimi_evaluation.classifiers.training.augmentation`."""

    speed: float = Field(
        default=1.18,
        ge=1,
        le=100,  # a second of speech would become one centisecond
        description="largest factor of speed and pitch, up or down; 1: no change",
    )
    gain_db: float = Field(default=6.0, ge=0, le=MAX_DECIBELS, description="largest gain, up or down, in decibels")
    tilt_db: float = Field(
        default=3.0, ge=0, le=MAX_DECIBELS, description="largest spectral tilt, up or down, in decibels per octave"
    )
    filter_share: float = Field(
        default=0.3, ge=0, le=1, description="share of the recordings with a band-pass filter, like a telephone's"
    )
    noise_share: float = Field(
        default=0.5, ge=0, le=1, description="share of the recordings with noise, from white to brown"
    )
    noise_db: list[float] = Field(
        default=[5.0, 40.0], description="smallest and largest signal-to-noise ratio in decibels"
    )
    mask_share: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="share of the recordings with a silenced interval; independently of it, the same share lacks "
        "a band of frequencies (SpecAugment, arXiv 1904.08779)",
    )

    @field_validator("noise_db")
    @classmethod
    def _check_noise(cls, value: list[float]) -> list[float]:
        if len(value) != 2 or value[0] > value[1] or max(map(abs, value)) > MAX_DECIBELS:
            raise ValueError(f"it must be two numbers from -{MAX_DECIBELS} to {MAX_DECIBELS}, the lower first")
        return value


class ClassificationConfig(Settings):
    """The cross-entropy loss."""

    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of a target that is spread over all words (arXiv 1512.00567, section 7)",
    )


class ClassifierConfig(RunConfig):
    """Configuration of classifier training."""

    fixed: ClassVar = ("seed", "model", "data", "augmentation", "objective")

    output_dir: Text = Field(default="runs/digit-classifier", description="the run folder")
    model: ClassifierModelConfig = Field(default_factory=ClassifierModelConfig)
    data: SourcesConfig = Field(default_factory=SourcesConfig)
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    objective: ClassificationConfig = Field(default_factory=ClassificationConfig)

    @model_validator(mode="after")
    def _check_embedding(self) -> "ClassifierConfig":
        name, embedding = self.model.name, self.model.embedding
        if (name == "small") != (embedding is not None):
            expected = "speech-embedding, or the folder of another" if name == "small" else "null"
            raise UserError(f"model.embedding is {short_form(embedding)}: with model.name={name} it must be {expected}")
        return self
