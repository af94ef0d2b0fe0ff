"""Fixtures of the data tests: recordings, an empty cache folder, and torchaudio's availability."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set an empty cache folder in the environment and return it."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SASHIMI_CACHE", str(folder))
    return folder


@pytest.fixture
def record() -> Callable[..., np.ndarray]:
    """Return ``record(path, samples, rate)``, which writes noise that depends on the file name and returns it."""

    def write(path: Path, samples: int = 100, rate: int = 16000, channels: int = 1) -> np.ndarray:
        path.parent.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(list(str(path.name).encode()))
        noise = (generator.integers(-8000, 8000, (samples, channels)) / 2**15).astype(np.float32)
        soundfile.write(path, noise, rate)
        return noise[:, 0] if channels == 1 else noise

    return write


@pytest.fixture
def without_torchaudio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make importing torchaudio fail as it does with a CPU-only torch."""
    import builtins

    real_import = builtins.__import__

    def fail(name: str, *arguments, **keywords):
        if name.split(".")[0] == "torchaudio":
            raise OSError("Could not load this library: _torchaudio.abi3.so\nmore lines")
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", fail)


@pytest.fixture
def needs_torchaudio() -> None:
    """Skip the test if torchaudio cannot be imported, for example with a CPU-only torch."""
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError) as error:
        pytest.skip(f"torchaudio cannot be imported: {str(error).splitlines()[0]}")
