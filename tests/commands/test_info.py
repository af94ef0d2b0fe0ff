"""Tests of sashimi-info and of the reasons for backends."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from sashimi_diffusion.commands import info
from sashimi_kernels.backends import backend_name, explain_backend
from sashimi_kernels.errors import BackendUnavailableError


def _output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["sashimi-info", *arguments])
    assert info.main() == 0
    return capsys.readouterr().out


def test_all_sections_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("SASHIMI_CACHE", str(tmp_path / "cache\x1b[31m"))
    text = _output(monkeypatch, capsys)
    for line in ("versions", "devices", "kernels", "caches", "bundled pipelines", "environment variables"):
        assert f"\n{line}\n" in f"\n{text}"
    assert f"torch                     {torch.__version__.partition('+')[0]}" in text
    assert "cache\\x1b[31m: does not exist yet" in text
    assert "\x1b" not in text


def test_json_has_the_same_content(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    content = json.loads(_output(monkeypatch, capsys, "--json"))
    assert content["versions"]["diffusers"] == version("diffusers")
    assert Path(content["bundled pipelines"]["sashimi-digits"], "model_index.json").is_file()
    assert "chunked_convolution" in content["kernels"]


def test_a_package_that_cannot_be_imported_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise OSError(f"lib{name}.so is missing\nand a second line")

    monkeypatch.setattr(info.importlib, "import_module", broken)
    versions = info.information()["versions"]
    assert versions["soundfile"].endswith("but it cannot be imported (libsoundfile.so is missing)")
    assert versions["numpy"] == version("numpy")


def test_the_size_of_a_cache_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "entry").mkdir()
    (tmp_path / "entry" / "audio.f32").write_bytes(bytes(1_500_000))
    monkeypatch.setenv("SASHIMI_CACHE", str(tmp_path))
    assert info.information()["caches"] == {"audio, features, choices": f"{tmp_path}: 1.5 MB"}


@pytest.mark.parametrize("chosen", [None, "torch", "reference"])
def test_the_explained_backend_is_the_selected_one(monkeypatch: pytest.MonkeyPatch, chosen: str | None) -> None:
    monkeypatch.delenv("SASHIMI_KERNELS", raising=False)
    if chosen is not None:
        monkeypatch.setenv("SASHIMI_KERNELS", chosen)
    name, _, reason = explain_backend(torch.device("cpu"), "scalar_norm").partition(": ")
    assert name == backend_name("auto", torch.device("cpu"), "scalar_norm")
    assert (chosen or "the device is not a CUDA") in reason


def test_a_backend_that_cannot_run_is_explained_by_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SASHIMI_KERNELS", "numpy")
    with pytest.raises(BackendUnavailableError) as raised:
        backend_name("auto", torch.device("cpu"), "scalar_norm")
    assert explain_backend(torch.device("cpu"), "scalar_norm") == str(raised.value)
