"""Tests of the noise of sampling steps against that of diffusers."""

from typing import Any

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from sashimi_diffusion.schedulers.noise import draw_noise

CPU = torch.device("cpu")


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_noise_is_that_of_diffusers(dtype: torch.dtype) -> None:
    for own, theirs in ((generators(1, 2), generators(1, 2)), (generators(3)[0], generators(3)[0])):
        assert torch.equal(draw_noise((2, 1, 37), own, CPU, dtype), randn_tensor((2, 1, 37), theirs, CPU, dtype))
    torch.manual_seed(0)
    first = draw_noise((2, 1, 37), None, CPU)
    torch.manual_seed(0)
    assert torch.equal(first, randn_tensor((2, 1, 37), None, CPU, torch.float32))


def test_the_copy_to_a_gpu_starts_from_pinned_memory_and_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[tuple[torch.device, bool, bool]] = []
    pinned: list[int] = []

    def pin_memory(tensor: Tensor) -> Tensor:
        pinned.append(id(tensor))
        return tensor

    to = Tensor.to

    def to_device(tensor: Tensor, device: Any, *arguments: Any, non_blocking: bool = False) -> Tensor:
        if torch.device(device).type != "cuda":
            return to(tensor, device, *arguments)
        copies.append((device, non_blocking, id(tensor) in pinned))
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(Tensor, "to", to_device)
    device = torch.device("cuda", 1)
    noise = draw_noise((2, 1, 8), generators(1, 2), device)
    assert torch.equal(noise, randn_tensor((2, 1, 8), generators(1, 2), CPU, torch.float32))
    assert copies == [(device, True, True)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
def test_noise_on_a_gpu_is_that_of_the_cpu() -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        drawn = [draw_noise((2, 1, 1000), generators(seed, seed + 1), torch.device("cuda")) for seed in range(20)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for seed, noise in enumerate(drawn):
        assert torch.equal(noise.cpu(), draw_noise((2, 1, 1000), generators(seed, seed + 1), CPU))
