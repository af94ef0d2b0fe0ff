"""Generate clips sample by sample, all at once or as a stream of blocks."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation.engines import Engine, create_engine
from sashimi_diffusion.generation.sampling import Sampling
from sashimi_diffusion.memory import available_memory
from sashimi_diffusion.ssm import frozen

BLOCK = 1600
"""Default number of samples in a block."""
PREFILL_CHUNK = 2**15
"""Largest number of samples of a prefix in one pass; it limits the memory of a pass."""

# Bytes per sample of a clip: token, log-probability, entropy, random number. There are two copies of the first three
# when the blocks are concatenated.
_BYTES_PER_SAMPLE = 2 * (8 + 4 + 4) + 8
# Bytes per sample and token of a prefix chunk: the logits, their logarithm, its exponential and their product, float32.
_BYTES_PER_LOGIT = 4 * 4
# Bytes per sample of a prefix chunk for features and kernels, per square root of the number of parameters: features
# grow with the width, parameters with its square. The published networks of all three kinds need 3 to 11, measured.
_BYTES_PER_FEATURE = 12

Generators = torch.Generator | Sequence[torch.Generator] | None


class Generation(NamedTuple):
    """Clips, or a block of them, with the log-probability of each sample. A prefix is part of the clips.

    Args:
        tokens: int64 (B, L).
        log_probabilities: of each token given the tokens before it, in nats, float32 (B, L).
        entropies: of the distribution of each token, in nats, float32 (B, L).
        prefix_length: number of the L samples that belong to the prefix.

    Log-probabilities and entropies are those of the model's distribution, before temperature, top-k and top-p.
    """

    tokens: Tensor
    log_probabilities: Tensor
    entropies: Tensor
    prefix_length: int = 0

    @property
    def log_likelihood(self) -> Tensor:
        """Log-likelihood of the generated samples, without the prefix, in nats, float64 (B,)."""
        return self.log_probabilities[:, self.prefix_length :].double().sum(dim=1)


def generate(
    model: Any,
    length: int,
    batch_size: int = 1,
    prefix: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: Generators = None,
    engine: str = "auto",
    weights: str = "float32",
) -> Generation:
    """Generate clips of ``length`` samples.

    Args:
        model: an ``AutoregressiveModel`` in evaluation mode.
        length: samples of a clip, including the prefix.
        batch_size: number of clips.
        prefix: tokens at the beginning of the clips, int64 (P,), (1, P) or (batch_size, P).
        temperature, top_k, top_p: see :class:`Sampling`.
        generator: random number generator on the CPU, one for all clips or one for each clip. With one for each clip, a
            clip does not depend on the other clips of the batch.
        engine, weights: see :func:`create_engine`.

    Raises:
        UserError: an argument is out of range, the prefix does not fit, or the clips need more memory than is free.
    """
    sampling = (temperature, top_k, top_p)
    return joined(list(stream(model, length, BLOCK, batch_size, prefix, *sampling, generator, engine, weights)))


def joined(blocks: Sequence[Generation]) -> Generation:
    """Return consecutive blocks of the same clips as one."""
    return Generation(
        torch.cat([block.tokens for block in blocks], dim=1),
        torch.cat([block.log_probabilities for block in blocks], dim=1),
        torch.cat([block.entropies for block in blocks], dim=1),
        prefix_length=sum(block.prefix_length for block in blocks),
    )


def stream(
    model: Any,
    length: int | None = None,
    block: int = BLOCK,
    batch_size: int = 1,
    prefix: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: Generators = None,
    engine: str = "auto",
    weights: str = "float32",
) -> Iterator[Generation]:
    """Generate clips as :func:`generate` does, ``block`` samples at a time; a prefix is the first block.

    Args:
        length: samples of a clip, including the prefix; None: the stream does not end.
        block: samples of a block.
        model, batch_size, prefix, temperature, top_k, top_p, generator, engine, weights: see :func:`generate`.

    Raises:
        UserError: as :func:`generate`; this call raises it, before the first block is requested.
    """
    sampling = Sampling(temperature, top_k, top_p)
    prefix = _checked_prefix(prefix, length, batch_size, model.config.num_tokens)
    for name, value in {"length": length, "block": block, "batch_size": batch_size}.items():
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    check_memory(model, batch_size, 0 if length is None else length, 0 if prefix is None else prefix.shape[1])
    generators = _generators(generator, batch_size)
    prepared = create_engine(engine, model, batch_size, weights)
    return _blocks(model, prepared, length, block, batch_size, prefix, sampling, generators)


@torch.no_grad()
def prefill(model: Any, tokens: Tensor, chunk: int = PREFILL_CHUNK) -> tuple[Tensor, Tensor, Any]:
    """Process a prefix in chunks, with the result of one pass over the whole prefix.

    Args:
        model: an ``AutoregressiveModel`` in evaluation mode.
        tokens: the prefix, int64 (B, P).
        chunk: samples of a chunk.

    Returns:
        log-probability of each token given the tokens before it, and entropy of the distribution of each token, both in
        nats, float32 (B, P); and the model's state before it receives the last token as input.
    """
    state, results = None, []
    for inputs, targets in zip(model.inputs(tokens).split(chunk, dim=1), tokens.split(chunk, dim=1), strict=True):
        *chunk_results, state = _prefill_chunk(model, inputs, targets, state)
        results.append(chunk_results)
    log_probabilities, entropies = (torch.cat(parts, dim=1) for parts in zip(*results, strict=True))
    return log_probabilities, entropies, state


def check_memory(model: Any, batch_size: int, length: int, prefix_length: int) -> None:
    """Raise UserError if ``batch_size`` clips of ``length`` samples need more memory than is free."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    needed = batch_size * (
        4 * state_bytes(model.initial_state(1))  # the current state, the next one, the engine's copy and its spans
        + max(length, prefix_length) * _BYTES_PER_SAMPLE
        + min(prefix_length, PREFILL_CHUNK)
        * (_BYTES_PER_LOGIT * model.config.num_tokens + int(_BYTES_PER_FEATURE * math.sqrt(parameters)))
    )
    free = available_memory(torch.device(model.device))
    if free is not None and needed > free:
        raise UserError(
            f"{batch_size} clips of {length} samples need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: "
            "generate fewer clips at once, or shorter ones"
        )


def state_bytes(state: Any) -> int:
    """Return the memory of a nested tuple of tensors, in bytes."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    return sum(map(state_bytes, state)) if isinstance(state, tuple) else 0


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
    """Yield the blocks of :func:`stream`, with checked arguments."""
    tokens = torch.full((batch_size,), model.start_token, device=model.device)
    done = 0
    if prefix is not None:
        prefix = prefix.to(model.device)
        with frozen(model):
            log_probabilities, entropies, state = prefill(model, prefix)
        engine.load(state)
        yield Generation(prefix, log_probabilities, entropies, prefix_length=prefix.shape[1])
        # The state does not include the last token of the prefix, which is the input of the first step.
        done, tokens = prefix.shape[1], prefix[:, -1]
    while length is None or done < length:
        count = block if length is None else min(block, length - done)
        uniforms = torch.stack([torch.rand(count, dtype=torch.float64, generator=one) for one in generators])
        with frozen(model):  # not across blocks, between which the caller may change the model
            generation = Generation(*engine.run(tokens, uniforms, sampling))
        yield generation
        done, tokens = done + count, generation.tokens[:, -1]


def _prefill_chunk(model: Any, inputs: Tensor, targets: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
    """Process one chunk: log-probabilities and entropies (B, L), and the next state.

    This is a separate function so that the logits are freed before the next chunk begins.
    """
    logits, state = model.prefill(inputs, state)
    log_probabilities = logits.float().log_softmax(dim=1)  # (B, num_tokens, L)
    entropies = -(log_probabilities.exp() * log_probabilities).nan_to_num(0).sum(dim=1)
    return log_probabilities.gather(1, targets.unsqueeze(1)).squeeze(1), entropies, state


def _generators(generator: Generators, batch_size: int) -> list[torch.Generator | None]:
    if not isinstance(generator, Sequence):
        return [generator] * batch_size
    if len(generator) != batch_size:
        raise UserError(f"expected one generator for each of {batch_size} clips, got {len(generator)}")
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
            f"the prefix has {prefix.shape[1]} samples, the clip {length}: the clip must be longer than the prefix"
        )
    return prefix.expand(batch_size, -1)
