"""The base class of every network of this package: a diffusers model of waveforms."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor

from sashimi_diffusion.arguments import Range, check_arguments
from sashimi_diffusion.bundled import BundledByName
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import give_usual_rights

MAX_PARAMETERS = 1_000_000_000
"""The largest number of parameters of a network; the largest one of the SaShiMi paper has 35 million."""

_WIDTH = Range(1, 65_536)
_SAMPLES = Range(1, 1_000_000_000)
RANGES = {
    # audio
    "sample_rate": Range(1, 10_000_000),
    "sample_size": _SAMPLES,
    "waveform_std": Range(1e-9, 1e9),
    "pre_emphasis": Range(0, 0.99),
    "in_channels": Range(1, 1024),
    "out_channels": Range(1, 1024),
    "num_tokens": Range(2, 65_536),
    # SaShiMi
    "d_model": _WIDTH,
    "n_layers": Range(0, 256, items=17),
    "pool": _WIDTH,
    "expand": Range(1, 64),
    "ff": Range(0, 64),
    # state spaces
    "n_state": Range(2, 1024),
    "n_ssm": _WIDTH,
    "reverse_shift": Range(0, 1),
    "kernel_length": _SAMPLES,
    "dt_min": Range(1e-9, 1e3),
    "dt_max": Range(1e-9, 1e3),
    # WaveNets
    "residual_channels": _WIDTH,
    "dilation_channels": _WIDTH,
    "skip_channels": _WIDTH,
    "end_channels": _WIDTH,
    "dilation_cycle": Range(1, 24),
    "n_cycles": Range(1, 64),
    # SampleRNN
    "frame_sizes": _WIDTH,
    "dim": _WIDTH,
    "n_rnn": Range(1, 64),
    # conditioning
    "embedding_sines": Range(4, 65_536),
    "embedding_hidden": _WIDTH,
    "embedding_dim": _WIDTH,
    "num_classes": Range(1, 1_000_000),
    "class_names": Range(0, 0, items=1_000_000),
    "num_speakers": Range(1, 1_000_000),
    "speaker_names": Range(0, 0, items=1_000_000),
    "mel_channels": _WIDTH,
    "mel_upsample": Range(1, 65_536, items=8),
    "mel_mean": Range(-1e3, 1e3),
    "mel_std": Range(1e-3, 1e3),
}
"""Ranges of the arguments of all networks by name. A class may have another range for one of them."""


class StoredModel(BundledByName, ModelMixin, ConfigMixin):
    """A diffusers model that loads bundled weights by name, and saves files that others can read."""

    config_name = "config.json"  # type: ignore[assignment]  # diffusers annotates it as None
    config: Any

    def save_pretrained(  # diffusers reads from the signature what it may pass
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        save_function: Callable[..., Any] | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """Write the config and the weights to a folder that ``from_pretrained`` can load.

        Args:
            save_directory: the folder; it is created if it does not exist.
            is_main_process, save_function, safe_serialization, max_shard_size, push_to_hub, **options: see diffusers.
            variant: part of the names of the files with the weights, for example ``"fp16"``.
        """
        base: Any = super()
        base.save_pretrained(
            save_directory,
            is_main_process,
            save_function,
            safe_serialization,
            variant,
            max_shard_size,
            push_to_hub,
            **options,
        )
        if Path(save_directory).is_dir():  # diffusers logs an error if it is a file
            give_usual_rights(Path(save_directory), "diffusion_pytorch_model*")


class WaveformModel(StoredModel):
    """A diffusers model that takes waveforms whose length is a multiple of :attr:`length_multiple`.

    A subclass has the config entries ``sample_rate`` (Hz) and ``sample_size`` (samples), and implements
    :meth:`estimated_parameters`. Its arguments are checked before its layers are created.

    Raises:
        UserError: an error of :meth:`check_arguments`.
    """

    ranges: ClassVar[Mapping[str, Range]] = RANGES

    def __init__(self) -> None:
        super().__init__()
        if hasattr(self, "_internal_dict"):  # where diffusers keeps the arguments that register_to_config has seen
            self.check_arguments(self.config)
            numbers = self.estimated_parameters(self.config)
            if numbers > MAX_PARAMETERS:
                raise UserError(
                    f"the network would have about {numbers:.1e} parameters: expected at most {MAX_PARAMETERS:.0e}; "
                    "choose smaller sizes"
                )

    @classmethod
    def check_arguments(cls, arguments: Mapping[str, Any]) -> None:
        """Check types and ranges of arguments of the constructor, all or some of them.

        Raises:
            UserError: an argument has another type or is out of its range.
        """
        check_arguments(cls.__init__, arguments, cls.ranges)

    @staticmethod
    def estimated_parameters(arguments: Mapping[str, Any]) -> int:
        """Return about how many parameters a network with these arguments has: the weights of its linear maps."""
        return 0

    @property
    def length_multiple(self) -> int:
        """Divisor of the lengths in :meth:`forward`, in samples."""
        return 1

    def require_length(self, length: int, multiple: int = 1) -> None:
        """Check a length in samples.

        Raises:
            UserError: ``length`` is zero, or not a multiple of ``multiple``.
        """
        if length == 0:
            raise UserError("the waveforms are empty: expected at least one sample")
        if length % multiple:
            raise UserError(f"the length must be a multiple of {multiple}, got {length} samples")


def meta_state(network: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state dict of a network on the meta device: shapes and types of its tensors, without values.

    Args:
        network: class of the network.
        arguments: arguments of its constructor.
    """
    with torch.device("meta"):
        return network(**arguments).state_dict()
