"""What an autoregressive run can be told beside what every run can."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import SampleRNN, SashimiAutoregressive, WaveNetAutoregressive
from sashimi_diffusion.training.config import (
    DataConfig,
    ModelConfig,
    RunConfig,
    require_above_zero,
    require_at_least,
)


@dataclass
class AutoregressiveModelConfig(ModelConfig):
    """An autoregressive model.

    Args:
        name: "sashimi" (SashimiAutoregressive), "wavenet" (WaveNetAutoregressive) or "samplernn" (SampleRNN).
        arguments: of the network's constructor.
    """

    networks: ClassVar = {
        "sashimi": SashimiAutoregressive,
        "wavenet": WaveNetAutoregressive,
        "samplernn": SampleRNN,
    }

    name: Literal["sashimi", "wavenet", "samplernn"] = "sashimi"


@dataclass
class TokenDataConfig(DataConfig):
    """Recordings as quantized samples. What an example lacks at its end is neither padded nor scored.

    Args:
        normalize: scale to the full range of the quantization each "example", as the official code does, or each whole
            "recording", which keeps the dynamics of music.
        carry_chunks: an example is so many chunks of ``length`` samples that follow each other: one is trained on at a
            step, from the state that the one before left (truncated back-propagation through time).
        test: whether there are test data, for the figures at the end.
    """

    normalize: Literal["example", "recording"] = "example"
    carry_chunks: int = 1
    test: bool = True


@dataclass
class GenerationConfig:
    """The samples drawn while training.

    Args:
        num_samples: how many.
        seconds: length of each; null: ``data.length``.
        temperature, top_p: see :class:`sashimi_diffusion.generation.Sampling`.
        engine: see :func:`sashimi_diffusion.generation.create_engine`.
        seed: of the random numbers.
    """

    num_samples: int = 4
    seconds: float | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    engine: str = "auto"
    seed: int = 0


@dataclass
class AutoregressiveConfig(RunConfig):
    """A whole autoregressive run."""

    output_dir: str = "runs/autoregressive"
    model: AutoregressiveModelConfig = field(default_factory=AutoregressiveModelConfig)
    data: TokenDataConfig = field(default_factory=TokenDataConfig)
    sampling: GenerationConfig = field(default_factory=GenerationConfig)

    def check(self) -> None:
        """Raise UserError for a number no run can use."""
        super().check()
        require_at_least(self, {"data.carry_chunks": 1, "sampling.num_samples": 0})
        require_above_zero(self, ["sampling.seconds"])
        if self.training.checkpoint_every % self.data.carry_chunks:
            raise UserError(
                f"training.checkpoint_every is {self.training.checkpoint_every}: it must be a multiple of "
                f"data.carry_chunks={self.data.carry_chunks}, because the states between chunks are not kept"
            )
        if self.training.steps % self.data.carry_chunks:
            raise UserError(
                f"training.steps is {self.training.steps}: it must be a multiple of "
                f"data.carry_chunks={self.data.carry_chunks}"
            )
