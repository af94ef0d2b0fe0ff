"""Tests of ``sashimi-convert``: the folder, the summary, refused arguments."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sashimi_diffusion.commands.convert import main
from sashimi_diffusion.pipelines import SashimiPipeline


@pytest.mark.parametrize(
    ("name", "options", "summary"),
    [
        ("master_sashimi_unet_L16000", [], ["newer", "109,639", "d_model 8, 1 layers", "200 steps", "16,000 samples"]),
        ("ckpt_sashimi_snet_uncond", [], ["older", "16,000 Hz", "200 steps", "FFT nodes", "computed exactly", "e-04"]),
        ("ckpt_sashimi_snet_uncond", ["--stored-nodes"], ["older", "FFT nodes", "as stored in the file", "e-04"]),
        (
            "ckpt_sashimi_unet_vocoder",
            [],
            ["older", "191,603", "22,050 Hz", "50 steps", "80 bands", "FFT nodes", "e-05"],
        ),
        (
            "ckpt_wavenet_vocoder",
            ["--dilation-cycle", "2"],
            ["WaveNet", "27,425", "cycle 2", "also on the residual path"],
        ),
        (
            "master_wavenet_uncond",
            ["--dilation-cycle", "2", "--no-step-on-residual", "--sample-rate", "8000", "--timesteps", "12"],
            ["WaveNet", "16,145", "8,000 Hz", "12 steps", "not on the residual path"],
        ),
    ],
)
def test_a_pipeline_folder_is_written(
    official: Callable, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, options: list[str], summary: list[str]
) -> None:
    network = official(f"d_diffwave/{name}")
    torch.save({"model_state_dict": network.state, "optimizer_state_dict": {}}, tmp_path / "official.pkl")
    assert main([str(tmp_path / "official.pkl"), str(tmp_path / "out"), *options]) == 0
    printed = capsys.readouterr().out
    for text in [*summary, f"wrote {tmp_path / 'out'}"]:
        assert text in printed
    pipe = SashimiPipeline.from_pretrained(tmp_path / "out")
    choices = {"step_on_residual": "--no-step-on-residual" not in options, "stored_nodes": "--stored-nodes" in options}
    expected = network.convert(**choices).model
    inputs = network.tensors["in.audio"], network.tensors["in.steps"][:, 0]
    with torch.no_grad():
        output = pipe.model(*inputs, mel=network.tensors.get("in.mel")).sample
        expected_output = expected(*inputs, mel=network.tensors.get("in.mel")).sample
    assert (output - expected_output).abs().max() < 1e-6 * expected_output.abs().max()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(pipe.model.state_dict()[name], tensor), name
    if "in.mel" not in network.tensors:
        audio = pipe(num_inference_steps=2, audio_length_in_s=0.016, output_type="pt").audios
        assert torch.isfinite(audio).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.pkl", "out"], "nothing.pkl does not exist"),
        (["official.pkl", "full"], "full already exists and is not empty"),
        (["official.pkl", "official.pkl"], "official.pkl already exists and is a file"),
        (["official.pkl", "official.pkl/out"], "cannot write to official.pkl/out"),
        (["official.pkl", "out"], "--dilation-cycle"),
        (["broken.pkl", "out"], "missing final_conv.0.conv.bias"),
        (["official.pkl", "out", "--length", "-3"], "-3 is not a positive number"),
        (["official.pkl", "out", "--beta-end", "nan"], "nan is not a positive number"),
        (["official.pkl", "out", "--dilation-cycle", "2", "--beta-end", "2"], "--beta-end: 2 is more than 1"),
        (["official.pkl", "out", "--dilation-cycle", "2", "--stored-nodes"], "only the older SaShiMi layout"),
    ],
)
def test_errors_are_one_line_and_write_nothing(
    official: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(official("d_diffwave/master_wavenet_uncond").state, "official.pkl")
    broken = official("d_diffwave/ckpt_sashimi_snet_uncond").state
    del broken["final_conv.0.conv.bias"]
    torch.save(broken, "broken.pkl")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    if arguments[1] == "official.pkl/out":
        arguments = [*arguments, "--dilation-cycle", "2"]
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
