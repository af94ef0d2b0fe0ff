"""Fixtures for the conversion tests: official checkpoints from the files of golden tensors."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
from torch import Tensor

from sashimi_diffusion.interop.diffwave import Conversion, ConversionOptions, convert_diffwave


class Official(NamedTuple):
    """A small official network: its configuration, all tensors of the file, and its state dict."""

    config: dict
    tensors: dict[str, Tensor]
    state: dict[str, Tensor]

    def convert(self, **options) -> Conversion:
        """Convert the network."""
        defaults = {"dilation_cycle": self.config.get("dilation_cycle"), "length": self.config.get("L")}
        return convert_diffwave(self.state, ConversionOptions(**{**defaults, **options}))


@pytest.fixture(scope="session")
def official(golden) -> Callable[..., Official]:
    """Return a function that reads a file of golden tensors."""

    def read(name: str, full: bool = False) -> Official:
        tensors = golden.tensors(name, full)
        state = {key.removeprefix("sd."): value for key, value in tensors.items() if key.startswith("sd.")}
        return Official(golden.info(name)["config"], tensors, state)

    return read
