"""Drawing clips sample by sample: all at once, or block by block as they are made."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation.engines import Engine, create_engine
from sashimi_diffusion.generation.memory import check_memory
from sashimi_diffusion.generation.prefix import absorb
from sashimi_diffusion.generation.sampling import Sampling

BLOCK = 1600


class Generation(NamedTuple):
    """Clips, or a block of them, and how likely the model finds each sample; a prefix counts as part of them.

    Args:
        tokens: int64 (B, L).
        log_probabilities: of each token given those before it, in nats, float32 (B, L).
        entropies: of the distribution each token was drawn from (before temperature and the like), nats, (B, L).
        prefix_length: how many of the L samples were given, not made.
    """

    tokens: Tensor
    log_probabilities: Tensor
    entropies: Tensor
    prefix_length: int = 0

    @property
    def log_likelihood(self) -> Tensor:
        """Of the samples that were made, in nats: (B,)."""
        return self.log_probabilities[:, self.prefix_length :].double().sum(dim=1)


def generate(
    model: Any,
    length: int,
    batch_size: int = 1,
    prefix: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    engine: str = "auto",
) -> Generation:
    """Draw clips of ``length`` samples.

    Args:
        model: an ``AutoregressiveModel`` in evaluation mode.
        length: samples of a clip, those of the prefix included.
        batch_size: how many clips.
        prefix: tokens that the clips begin with, int64 (P,), (1, P) or (batch_size, P).
        temperature, top_k, top_p: see :class:`Sampling`.
        generator: random numbers on the CPU: one for all clips, or one for each, which makes a clip independent of
            those beside it.
        engine: see :func:`create_engine`.

    Raises:
        UserError: an argument out of range, a prefix that does not fit, or more than memory holds.
    """
    blocks = list(stream(model, length, BLOCK, batch_size, prefix, temperature, top_k, top_p, generator, engine))
    joined = [torch.cat(parts, dim=1) for parts in zip(*(block[:3] for block in blocks), strict=True)]
    return Generation(*joined, prefix_length=sum(block.prefix_length for block in blocks))


def stream(
    model: Any,
    length: int | None = None,
    block: int = BLOCK,
    batch_size: int = 1,
    prefix: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    engine: str = "auto",
) -> Iterator[Generation]:
    """Draw clips as :func:`generate` does, ``block`` samples at a time; the prefix is a block of its own.

    ``length`` None goes on for ever. What is wrong is raised by this call, before the first block is asked for.
    """
    sampling = Sampling(temperature, top_k, top_p)
    prefix = _checked_prefix(prefix, length, batch_size, model.config.num_tokens)
    for name, value in {"length": length, "block": block, "batch_size": batch_size}.items():
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    check_memory(model, batch_size, 0 if length is None else length, 0 if prefix is None else prefix.shape[1])
    generators = _generators(generator, batch_size)
    prepared = create_engine(engine, model, batch_size)
    return _blocks(model, prepared, length, block, batch_size, prefix, sampling, generators)


def _blocks(
    model: Any,
    engine: Engine,
    length: int | None,
    block: int,
    batch_size: int,
    prefix: Tensor | None,
    sampling: Sampling,
    generators: list[torch.Generator | None],
) -> Iterator[Generation]:
    tokens = torch.full((batch_size,), model.start_token, device=model.device)
    made = 0
    if prefix is not None:
        prefix = prefix.to(model.device)
        log_probabilities, entropies, state = absorb(model, prefix)
        engine.load(state)
        yield Generation(prefix, log_probabilities, entropies, prefix_length=prefix.shape[1])
        # The state is one input behind: the last token of the prefix is what the first step begins with.
        made, tokens = prefix.shape[1], prefix[:, -1]
    while length is None or made < length:
        count = block if length is None else min(block, length - made)
        uniforms = torch.stack([torch.rand(count, dtype=torch.float64, generator=one) for one in generators])
        generation = Generation(*engine.run(tokens, uniforms, sampling))
        yield generation
        made, tokens = made + count, generation.tokens[:, -1]


def _generators(
    generator: torch.Generator | Sequence[torch.Generator] | None, batch_size: int
) -> list[torch.Generator | None]:
    if not isinstance(generator, Sequence):
        return [generator] * batch_size
    if len(generator) != batch_size:
        raise UserError(f"one generator per clip is expected: {batch_size}, got {len(generator)}")
    return list(generator)


def _checked_prefix(prefix: Tensor | None, length: int | None, batch_size: int, num_tokens: int) -> Tensor | None:
    if prefix is None:
        return None
    if prefix.ndim == 1:
        prefix = prefix.unsqueeze(0)
    if prefix.is_floating_point() or prefix.ndim != 2 or prefix.shape[0] not in (1, batch_size) or not prefix.numel():
        raise UserError(
            f"the prefix must be tokens of shape (P,), (1, P) or ({batch_size}, P), got {prefix.dtype} of shape "
            f"{tuple(prefix.shape)}"
        )
    if prefix.min() < 0 or prefix.max() >= num_tokens:
        raise UserError(f"the prefix has tokens outside of 0 to {num_tokens - 1}: was it quantized for another model?")
    if length is not None and prefix.shape[1] >= length:
        raise UserError(
            f"the prefix has {prefix.shape[1]} samples, the clip {length}: it must be longer than the prefix"
        )
    return prefix.expand(batch_size, -1)
