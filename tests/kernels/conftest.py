"""Kernels run on CPU tensors in Triton's interpreter; memory that nobody wrote to is NaN."""

import pytest
import torch


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.empty``, ``torch.empty_like`` and ``Tensor.new_empty`` give NaN, so that an unwritten element shows."""

    def poison(make):
        def allocate(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() or tensor.is_complex() else tensor

        return allocate

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))
