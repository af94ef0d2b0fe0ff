"""Configuration of autoregressive training."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation.engines import ENGINES
from sashimi_diffusion.models import SampleRNN, SashimiAutoregressive, WaveNetAutoregressive
from sashimi_diffusion.suggestions import did_you_mean
from sashimi_diffusion.training.config import MAX_SAMPLES, MAX_STEPS, RunConfig, TrainingConfig
from sashimi_diffusion.training.data_config import MAX_LENGTH, DataConfig
from sashimi_diffusion.training.model_config import ModelConfig
from sashimi_diffusion.training.settings import Seed, Settings, Text


class AutoregressiveModelConfig(ModelConfig):
    """The autoregressive model and the arguments of its constructor."""

    networks: ClassVar = {
        "sashimi": SashimiAutoregressive,
        "wavenet": WaveNetAutoregressive,
        "samplernn": SampleRNN,
    }

    name: Literal["sashimi", "wavenet", "samplernn"] = Field(
        default="sashimi",
        description='"sashimi" (SashimiAutoregressive), "wavenet" (WaveNetAutoregressive) or "samplernn" (SampleRNN)',
    )

    @model_validator(mode="before")
    @classmethod
    def _has_one_channel(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and "in_channels" in tree:
            raise UserError(
                "model.in_channels is set, but an autoregressive model has one channel, and the channels of every "
                "recording are mixed: remove it, or train a diffusion model"
            )
        return tree


class TokenDataConfig(DataConfig):
    """The recordings, as quantized samples. Short examples are padded; the loss ignores the padding."""

    normalize: Literal["example", "recording"] = Field(
        default="example",
        description='scale each "example" to the full range of the quantization, as the official code does, or each '
        'whole "recording", which keeps the dynamics of music',
    )
    carry_chunks: int = Field(
        default=1,
        ge=1,
        le=MAX_STEPS,
        description="number of chunks of `length` samples in an example; each optimizer step trains on one chunk, "
        "starting from the state after the previous chunk (truncated back-propagation through time)",
    )
    test: bool = Field(default=True, description="whether to compute metrics of the test split at the end of the run")

    @model_validator(mode="after")
    def _check_chunks(self) -> "TokenDataConfig":
        if self.kind == "webdataset" and self.carry_chunks > 1:
            raise UserError(
                f"data.carry_chunks is {self.carry_chunks}: with data.kind=webdataset it can only be 1, because the "
                "lengths of the recordings are not known before they are decoded"
            )
        return self


class GenerationConfig(Settings):
    """The samples drawn during training."""

    num_samples: int = Field(default=4, ge=0, le=MAX_SAMPLES, description="number of samples; 0: none")
    seconds: float | None = Field(
        default=None,
        gt=0,
        le=86_400,  # a day
        description="length of each sample; null: `data.length`",
    )
    temperature: float = Field(
        default=1.0,
        ge=0,
        le=1000,  # all tokens are equally likely
        description="temperature of the softmax; 0: greedy. It is the default of the pipeline",
    )
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="probability of nucleus sampling; 1: all tokens. It is the default of the pipeline",
    )
    engine: Text = Field(default="auto", description="an engine of `sashimi_diffusion.generation`")
    seed: Seed = Field(default=0, description="seed of the random numbers")

    @field_validator("engine")
    @classmethod
    def _check_engine(cls, value: str) -> str:
        if value not in ENGINES:
            raise ValueError(f"expected one of {', '.join(ENGINES)}{did_you_mean(value, ENGINES)}")
        return value


class AutoregressiveTrainingConfig(TrainingConfig):
    """The length of a run, the size of its batches, when it writes what, and the weights that it starts from."""

    initial_pipeline: Text | None = Field(
        default=None,
        description="start from the network of this pipeline, a folder or the name of a bundled one; settings of the "
        "network must be its own; null: a new network",
    )


class AutoregressiveConfig(RunConfig):
    """Configuration of autoregressive training."""

    output_dir: Text = Field(default="runs/autoregressive", description="the run folder")
    model: AutoregressiveModelConfig = Field(default_factory=AutoregressiveModelConfig)
    data: TokenDataConfig = Field(default_factory=TokenDataConfig)
    training: AutoregressiveTrainingConfig = Field(default_factory=AutoregressiveTrainingConfig)
    sampling: GenerationConfig = Field(default_factory=GenerationConfig)

    @model_validator(mode="after")
    def _check_multiples_of_chunks(self) -> "AutoregressiveConfig":
        chunks, training = self.data.carry_chunks, self.training
        if training.checkpoint_every % chunks:
            raise UserError(
                f"training.checkpoint_every is {training.checkpoint_every}: it must be a multiple of "
                f"data.carry_chunks={chunks}, because checkpoints do not store the states between chunks"
            )
        if training.steps % chunks:
            raise UserError(f"training.steps is {training.steps}: it must be a multiple of data.carry_chunks={chunks}")
        return self

    @model_validator(mode="after")
    def _check_seconds(self) -> "AutoregressiveConfig":
        seconds, rate = self.sampling.seconds, self.data.sample_rate
        samples = 1 if seconds is None else round(seconds * rate)
        if not 1 <= samples <= MAX_LENGTH:
            raise UserError(
                f"sampling.seconds is {seconds}, which is {samples:,} samples at data.sample_rate={rate}: expected 1 "
                f"to {MAX_LENGTH:,} samples"
            )
        return self
