"""Official checkpoints, as the files of golden tensors hold them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors.torch import load_file
from torch import Tensor

from sashimi_diffusion.interop.diffwave import Conversion, ConversionOptions, convert_diffwave


class Official(NamedTuple):
    """A small official network: its configuration, all tensors of the file, and its state dict."""

    config: dict
    tensors: dict[str, Tensor]
    state: dict[str, Tensor]

    def convert(self, **options) -> Conversion:
        """The network in this project's form."""
        defaults = {"dilation_cycle": self.config.get("dilation_cycle"), "length": self.config.get("L")}
        return convert_diffwave(self.state, ConversionOptions(**{**defaults, **options}))


@pytest.fixture(scope="session")
def official(shared_golden: Path) -> Callable[[str], Official]:
    """Reads the file called so below the folder of golden tensors."""

    def read(name: str) -> Official:
        tensors = load_file(shared_golden / f"{name}.safetensors")
        state = {key.removeprefix("sd."): value for key, value in tensors.items() if key.startswith("sd.")}
        return Official(json.loads((shared_golden / f"{name}.json").read_text())["config"], tensors, state)

    return read
