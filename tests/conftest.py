"""Fixtures every test may use."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Triton decides when it is imported whether kernels are compiled, or interpreted on CPU tensors.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# A busy computer is no failure.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

ROOT = Path(__file__).resolve().parent.parent


def _shared(name: str) -> Path:
    path = ROOT.parent / "shared" / name
    if not path.is_dir():
        pytest.skip(f"needs the folder ../shared/{name} beside the repository, which is not here")
    return path


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """Tensors computed with the official code, or a skip that says they are absent."""
    return _shared("golden")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real recordings, or a skip that says they are absent."""
    return _shared("data")
