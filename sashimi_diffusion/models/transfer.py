"""The weights of a trained denoiser in a network with other labels or a multiple of its sample rate."""

import math
from typing import Any

import torch
from torch import Tensor

from sashimi_diffusion.arguments import as_list, short_form
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.overlapping_pools import OverlappingPool
from sashimi_diffusion.ssm import S4Layer

LABELS = ("class_embedding.", "speaker_embedding.")
FIRST_POOLS = ("backbone.down_pools.0.", "backbone.up_pools.0.")
OF_THE_RECORDINGS = (
    *("sample_rate", "sample_size", "waveform_std", "pool", "kernel_length"),
    *("num_classes", "class_names", "num_speakers", "speaker_names"),
)
"""Arguments in which the two networks may differ."""
INITIAL_VALUES = ("initialization", "dt_min", "dt_max")
"""Arguments that only say how a new network is initialized."""


@torch.no_grad()
def transfer_weights(source: Any, target: Any) -> None:
    """Copy the weights of a trained denoiser into a new one for other recordings.

    The networks may differ in how they were initialized, and in these parts:

    * classes and speakers: a label with a known name keeps its embedding, a new one starts at the mean of the known
      ones. If the target has no speakers, its classes stand for the mean speaker.
    * sample rate: with k times the rate, the first pool of the target is k times as large, and the later stages keep
      their rates. Its weights repeat those of the source, and S4 layers at the raw rate have 1/k of the step size. For
      a waveform that repeats each sample k times, the prediction is about that of the source, with repeated samples.
      ``kernel_length`` is k times as large, too.

    Args:
        source: a denoiser.
        target: a denoiser of the same class, which gets the weights.

    Raises:
        UserError: the target lacks classes, or speakers of a source without classes; its rate is no multiple of the
            source's; its rate differs, and the networks are vocoders, have legacy layers, no pools, or pools that do
            not overlap; its first pool is not larger by the factor of the rates; or other parts differ.
    """
    if source.class_embedding is not None and target.class_embedding is None:
        raise UserError(
            "the initial network has classes, so the recordings need some: put them into a folder for each class, or "
            "say with data.pattern where their names are, and set model.class_conditional=true"
        )
    if source.class_embedding is None and source.speaker_embedding is not None and target.speaker_embedding is None:
        raise UserError("the initial network has speakers, so the recordings need some: set data.speakers")
    factor = _rate_factor(source.config, target.config)
    _require_same_settings(source.config, target.config, factor)
    own = LABELS if factor == 1 else LABELS + FIRST_POOLS
    known, new = (_without(own, network.state_dict()) for network in (source, target))
    for name in {**new, **known}:
        shapes = [tuple(part[name].shape) if name in part else None for part in (known, new)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"the weights of the initial network do not fit: {name} has shape {shapes[0]}, expected {shapes[1]}"
            )
    target.load_state_dict(known, strict=False)
    if factor > 1:
        _copy_first_pools(source.backbone, target.backbone, factor)
    _copy_labels(source, target)


def _rate_factor(source: Any, target: Any) -> int:
    factor, remainder = divmod(target.sample_rate, source.sample_rate)
    if remainder or not factor:
        raise UserError(
            f"the sample rate is {target.sample_rate} Hz, that of the initial network {source.sample_rate} Hz: "
            "expected a multiple of it"
        )
    if factor > 1:
        _require_new_rate(source, target)
    pool, given = (as_list(config.get("pool")) for config in (source, target))
    expected = [pool[0] * factor, *pool[1:]] if pool else pool
    if given != expected:
        raise UserError(
            f"the initial network has {source.sample_rate} Hz and model.pool={pool}: at {target.sample_rate} Hz, "
            f"expected model.pool={expected}, got {given}"
        )
    return factor


def _require_new_rate(source: Any, target: Any) -> None:
    """Raise UserError if a network of this kind keeps its sample rate."""
    if not source.get("pool") or source.get("parameterization") == "legacy":
        kind = "of legacy layers" if source.get("pool") else "without pools"
        raise UserError(
            f"a network {kind} keeps the sample rate of its initial network: set data.sample_rate={source.sample_rate}"
        )
    if target.get("pooling") != "overlapping" or source.pooling != "overlapping":
        raise UserError("another sample rate than that of the initial network needs model.pooling=overlapping")
    if target.mel_channels is not None:
        raise UserError("a vocoder keeps the sample rate of its initial network, because its spectrograms depend on it")


def _require_same_settings(source: Any, target: Any, factor: int) -> None:
    """Raise UserError if the networks compute different things for the same weights."""
    free = {*OF_THE_RECORDINGS, *INITIAL_VALUES}
    if source.get("mel_settings") is None:  # pipelines of earlier versions have no settings
        free.add("mel_settings")
    expected = {name: value for name, value in source.items() if name not in free and name[0] != "_"}
    length = source.get("kernel_length")
    expected["kernel_length"] = None if length is None else factor * length
    for name, value in expected.items():
        given = target.get(name)
        if as_list(given) != as_list(value):
            raise UserError(
                f"{name} is {short_form(given)}, expected {short_form(value)}, as the initial network needs"
            )


def _copy_first_pools(source: Any, target: Any, factor: int) -> None:
    pools: list[tuple[OverlappingPool, OverlappingPool, float]] = [
        (source.down_pools[0], target.down_pools[0], 1 / factor),  # a sum over ``factor`` times as many samples
        (source.up_pools[0], target.up_pools[0], 1.0),
    ]
    for known, new, gain in pools:
        frames = known.plain_weight().unflatten(1, (-1, 2 * known.pool))  # (lower, upper, 2 · pool)
        new.assign(gain * frames.repeat_interleave(factor, dim=-1).flatten(1))
        new.bias.copy_(known.bias)
    for block in (*target.down[0], *target.up[0]):
        for part in block.modules():
            if isinstance(part, S4Layer):
                part.ssm.log_dt.sub_(math.log(factor))


def _copy_labels(source: Any, target: Any) -> None:
    for kind, names in (("class_embedding", "class_names"), ("speaker_embedding", "speaker_names")):
        known, new = getattr(source, kind), getattr(target, kind)
        if known is not None and new is not None:
            unnamed = [None] * new.null_label
            new.weight.copy_(_rows(known.weight, source.config[names] or (), target.config[names] or unnamed))
    if source.speaker_embedding is not None and target.speaker_embedding is None:
        table = source.speaker_embedding.weight
        target.class_embedding.weight[:-1] += table[:-1].mean(dim=0)
        target.class_embedding.weight[-1] += table[-1]


def _rows(table: Tensor, known: Any, names: Any) -> Tensor:
    """Return the embeddings of ``names`` and of no label, (names + 1, dim)."""
    mean = table[:-1].mean(dim=0)
    rows = [table[list(known).index(name)] if name in known else mean for name in names]
    return torch.stack([*rows, table[-1]])


def _without(prefixes: tuple[str, ...], state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}
