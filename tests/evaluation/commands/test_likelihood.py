"""Tests of ``sashimi-evaluate likelihood``."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sashimi_diffusion import likelihood
from sashimi_diffusion.data.audio import read_audio, write_audio
from sashimi_diffusion.models import SashimiAutoregressive, SashimiDenoiser
from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline, SashimiPipeline
from sashimi_diffusion.schedulers import DiffWaveScheduler
from sashimi_evaluation.commands.evaluate import main

RATE = 1000
SMALL: dict[str, Any] = {"d_model": 4, "n_layers": 1, "n_state": 4, "pool": [4]}
EMBEDDING = {"embedding_sines": 8, "embedding_hidden": 8, "embedding_dim": 8}


def save_denoiser(folder: Path, rate: int = RATE, **options: Any) -> str:
    torch.manual_seed(0)
    model = SashimiDenoiser(sample_rate=rate, sample_size=64, waveform_std=0.1, **SMALL, **EMBEDDING, **options)
    torch.nn.init.normal_(model.output[-1].weight, std=0.1)
    SashimiPipeline(model.eval(), DiffWaveScheduler(20, beta_end=0.5)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("likelihood")
    random = np.random.default_rng(0)
    (folder / "recordings").mkdir()
    for index, length in enumerate((100, 64, 51, 3)):
        audio = random.normal(size=length) * 0.1
        write_audio(folder / "recordings" / f"{'ab'[index % 2]}_ann_{index}.wav", audio, RATE)
    save_denoiser(folder / "diffusion")
    save_denoiser(folder / "classes", num_classes=2, class_names=["a", "b"], num_speakers=1, speaker_names=["ann"])
    save_denoiser(folder / "faster", 2 * RATE)
    save_denoiser(folder / "stereo", in_channels=2, out_channels=2)
    save_denoiser(folder / "vocoder", mel_channels=4, mel_upsample=[4, 4])
    torch.manual_seed(0)
    for name, kind in (("tokens", "mu-law"), ("linear", "linear")):
        model = SashimiAutoregressive(sample_rate=RATE, sample_size=64, quantization=kind, **SMALL).eval()
        SashimiAutoregressivePipeline(model).save_pretrained(folder / name)
    return folder


def evaluate(world: Path, *arguments: str) -> int:
    fast = ["--method", "heun", "--steps", "2", "--json", str(world / "likelihood.json"), "--device", "cpu"]
    return main(["likelihood", str(world / "recordings"), *fast, *arguments])


def test_both_kinds_of_pipelines_are_compared_on_the_same_samples(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diffusion, tokens = str(world / "diffusion"), str(world / "tokens")
    options = ["--hutchinson", "2", "--rms", "0.2", "--bound-draws", "4"]
    assert evaluate(world, "--pipeline", diffusion, "--pipeline", tokens, *options) == 0
    shown = capsys.readouterr().out
    assert "8-bit mu-law; the difference is that from" in shown
    assert "1 recordings were cut to their first 64 samples" in shown
    assert "1 recordings with fewer than 4 samples were left out" in shown
    assert "are comparable with each other" in shown
    report = json.loads((world / "likelihood.json").read_text())
    first, second = report["pipelines"]
    assert (first["kind"], second["kind"]) == ("diffusion", "autoregressive")
    assert first["variational_bound"] > 0
    assert second["variational_bound"] is None
    assert first["standard_error"] > 0
    assert second["standard_error"] == 0
    assert first["rms"] == 0.2
    assert second["difference"] == pytest.approx(second["bits_per_sample"] - first["bits_per_sample"])
    assert second["interval"][0] <= second["bits_per_sample"] <= second["interval"][1]
    by_file = {Path(one["file"]).name: one for one in report["recordings"]}
    assert {name: one["samples"] for name, one in by_file.items()} == {
        "a_ann_0.wav": 64,
        "b_ann_1.wav": 64,
        "a_ann_2.wav": 48,
    }
    pipe = SashimiAutoregressivePipeline.from_pretrained(tokens)
    audio = read_audio(world / "recordings" / "a_ann_2.wav", RATE)[:48]
    expected = float(likelihood.token_bits_per_sample(pipe, audio).bits)
    assert by_file["a_ann_2.wav"]["bits_per_sample"][tokens] == pytest.approx(expected)


def test_a_diffusion_pipeline_alone_has_bits_of_16_bit_samples_and_its_labels(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = str(world / "classes")
    options = ["--pattern", "{label}_{speaker}_{index}", "--where", "index=1", "--bound-draws", "0"]
    assert evaluate(world, "--pipeline", name, *options) == 0
    assert "16-bit PCM" in capsys.readouterr().out
    report = json.loads((world / "likelihood.json").read_text())
    pipe = SashimiPipeline.from_pretrained(name)
    audio = read_audio(world / "recordings" / "b_ann_1.wav", RATE)
    expected = likelihood.bits_per_sample(
        pipe, audio, "heun", steps=2, class_labels="b", speaker_labels="ann", generator=torch.Generator().manual_seed(0)
    )
    assert report["pipelines"][0]["bits_per_sample"] == pytest.approx(float(expected.bits), rel=1e-5)
    assert report["pipelines"][0]["interval"] is None
    assert report["pipelines"][0]["standard_error"] is None


@pytest.mark.parametrize(
    ("pipelines", "arguments", "message"),
    [
        (["classes"], [], "depends on the class of a recording, and "),
        (["classes"], ["--pattern", "{label}_{name}_{index}"], "give --pattern with the field {speaker}"),
        (["diffusion", "faster"], [], "the pipelines have different sample rates"),
        (["tokens", "linear"], [], "the autoregressive pipelines have different quantizations"),
        (["tokens"], ["--quantization", "pcm"], "the quantization pcm was asked for, but"),
        (["vocoder"], [], "is a vocoder"),
        (["diffusion"], ["--where", "speaker"], "--where speaker: expected FIELD=VALUE"),
        (["diffusion"], ["--seconds", "-1"], "--seconds is -1, expected a number above 0"),
        (["diffusion"], ["--seconds", "0.003"], "has 4 samples or more: give longer recordings"),
        (["diffusion"], ["--bound-draws", "-1"], "--bound-draws is -1"),
        (["diffusion"], ["--resamples", "1"], "--resamples is 1"),
        (
            ["diffusion"],
            ["--tolerance", "0.1"],
            "--tolerance is for --method rk45, and the method is heun: leave it out",
        ),
        (["diffusion"], ["--method", "rk45"], "--steps is for --method heun, and the method is rk45"),
        (["stereo"], [], "stereo has 2 channels: likelihoods are compared for one channel"),
        (["diffusion"], ["--rms", "1e30"], "the likelihood is not finite"),
        (["missing"], [], "missing"),
    ],
)
def test_wrong_input_is_one_line(
    pipelines: list[str], arguments: list[str], message: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [text for name in pipelines for text in ("--pipeline", str(world / name))]
    assert evaluate(world, *named, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_silent_recording_is_named(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_audio(tmp_path / "silence.wav", np.zeros(64), RATE)
    assert main(["likelihood", str(tmp_path), "--pipeline", str(world / "diffusion"), "--device", "cpu"]) == 2
    assert "silence.wav is silent: leave it out" in capsys.readouterr().err
    write_audio(tmp_path / "silence.wav", np.full(64, 0.3), RATE)
    assert main(["likelihood", str(tmp_path), "--pipeline", str(world / "diffusion"), "--device", "cpu"]) == 2
    assert "silence.wav has the same value throughout: leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "1e9", "1e-9", "0", "-1"])
def test_tolerances_out_of_range(value: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--pipeline", str(world / "diffusion"), f"--tolerance={value}", "--json", str(world / "x.json")]
    assert main(["likelihood", str(world / "recordings"), *options]) == 2
    assert capsys.readouterr().err.startswith(f"error: --tolerance is {float(value):g}, expected a number from 1e-06")


@pytest.mark.parametrize("name", ["recordings/a_ann_0.wav", "diffusion/model/config.json"])
def test_the_report_replaces_no_input(name: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (world / name).read_bytes()
    assert evaluate(world, "--pipeline", str(world / "diffusion"), "--json", str(world / name)) == 2
    assert "is also the input" in capsys.readouterr().err
    assert (world / name).read_bytes() == before


def test_the_note_on_cut_recordings_names_their_length(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(world, "--pipeline", str(world / "diffusion"), "--seconds", "0.047", "--bound-draws", "0") == 0
    assert "3 recordings were cut to their first 44 samples" in capsys.readouterr().out


def test_a_recording_that_cannot_be_read_is_named(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_audio(tmp_path / "good.wav", np.linspace(-0.1, 0.1, 64), RATE)
    (tmp_path / "link.wav").symlink_to(tmp_path / "gone.wav")
    assert main(["likelihood", str(tmp_path), "--pipeline", str(world / "diffusion"), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "link.wav: unreadable (No such file or directory)" in error
    assert "--skip-bad-files" not in error
