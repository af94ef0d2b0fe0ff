"""The base class of every network of this package: a diffusers model of waveforms."""

from typing import Any

from diffusers import ConfigMixin, ModelMixin

from sashimi_diffusion.errors import UserError


class WaveformModel(ModelMixin, ConfigMixin):
    """A diffusers model that takes waveforms whose length is a multiple of :attr:`length_multiple`.

    A subclass has the config entries ``sample_rate`` (Hz) and ``sample_size`` (samples).
    """

    config_name = "config.json"  # type: ignore[assignment]  # diffusers annotates it as None
    config: Any

    @property
    def length_multiple(self) -> int:
        """The number of samples that lengths in :meth:`forward` must be a multiple of."""
        return 1

    def require_length(self, length: int, multiple: int = 1) -> None:
        """Check a length in samples.

        Raises:
            UserError: ``length`` is zero or not a multiple of ``multiple``.
        """
        if length == 0:
            raise UserError("the waveforms are empty: expected at least one sample")
        if length % multiple:
            raise UserError(f"the length must be a multiple of {multiple}, got {length} samples")
