"""Tests of ``sashimi-sample``: audio files, record and errors."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from sashimi_diffusion.bundled import bundled_folders
from sashimi_diffusion.commands import sample, sample_diffusion, sample_folder
from sashimi_diffusion.files import writing
from sashimi_diffusion.models import WaveNetDenoiser
from sashimi_diffusion.pipelines import SashimiPipeline, hash_pipeline, memory, sashimi
from sashimi_diffusion.schedulers import DiffWaveScheduler

NAMES = ["zero", "one", "two"]


def save_pipeline(folder: Path, **options: object) -> Path:
    torch.manual_seed(0)
    model = WaveNetDenoiser(
        sample_rate=1000,
        sample_size=200,
        waveform_std=0.1,
        residual_channels=4,
        skip_channels=4,
        n_layers=2,
        embedding_sines=8,
        embedding_hidden=8,
        embedding_dim=8,
        **options,
    )
    torch.nn.init.normal_(model.output[-1].weight, std=0.3)
    for embedding in (model.class_embedding, model.speaker_embedding):
        if embedding is not None:
            torch.nn.init.normal_(embedding.weight)
    SashimiPipeline(model, DiffWaveScheduler(10, beta_end=0.2)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def class_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("classes"), num_classes=3, class_names=NAMES)


@pytest.fixture(scope="module")
def speaker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    speakers = {"num_speakers": 2, "speaker_names": ["ann", "bob b."]}
    return save_pipeline(tmp_path_factory.mktemp("speakers"), num_classes=3, class_names=NAMES, **speakers)


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("plain"))


def run(folder: Path, out: Path, *arguments: str) -> int:
    return sample.main(["--pipeline", str(folder), "--out", str(out), "--device", "cpu", *arguments])


def read(out: Path) -> dict[str, np.ndarray]:
    return {path.name: soundfile.read(path, dtype="int16")[0] for path in sorted(out.glob("*.wav"))}


def record(out: Path) -> dict:
    return json.loads((out / "samples.json").read_text())


def assert_same_audio(first: Path, second: Path) -> None:
    """Assert that the files are equal up to the last bit of PCM16."""
    one, other = read(first), read(second)
    assert list(one) == list(other)
    for name, waveform in one.items():
        assert np.abs(waveform.astype(int) - other[name]).max() <= 1, name


def test_all_files_are_written(class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(class_folder, tmp_path / "a" / "b", "--num-samples", "4", "--batch-size", "3") == 0
    out = tmp_path / "a" / "b"
    expected = ["0000-zero.wav", "0001-one.wav", "0002-two.wav", "0003-zero.wav"]
    assert sorted(path.name for path in out.iterdir()) == [*expected, "contact_sheet.png", "samples.json"]
    for name in expected:
        info = soundfile.info(out / name)
        assert (info.samplerate, info.frames, info.subtype, info.channels) == (1000, 200, "PCM_16", 1)
    Image.open(out / "contact_sheet.png").verify()
    captured = capsys.readouterr()
    assert "4 clips, 0.8 s of audio in" in captured.out
    for part in ("real-time factor", "peak memory", "MB", "clipped"):
        assert part in captured.out
    assert "batch 2/2: 100%" in captured.err


def test_the_record_reproduces_the_samples(class_folder: Path, tmp_path: Path) -> None:
    run(class_folder, tmp_path, "--num-samples", "3", "--seed", "5", "--label", "2,one", "--guidance-scale", "1.5")
    made = record(tmp_path)
    assert made["pipeline"]["sha256"] == hash_pipeline(class_folder)
    assert made["seed"] == 5
    assert made["scheduler"]["name"] == "DiffWaveScheduler"
    assert made["scheduler"]["steps"] == 10
    assert made["scheduler"]["config"]["beta_end"] == 0.2
    assert made["versions"]["torch"] == torch.__version__
    assert "sashimi-diffusion" in made["versions"]
    assert [(one["label"], one["class_name"]) for one in made["samples"]] == [(2, "two"), (1, "one"), (2, "two")]
    pipe = SashimiPipeline.from_pretrained(class_folder)
    for one in made["samples"]:
        generator = torch.Generator().manual_seed(one["seed"])
        audio = pipe(generator=[generator], class_labels=one["label"], guidance_scale=made["guidance_scale"]).audios
        written = soundfile.read(tmp_path / one["file"], dtype="float32")[0]
        np.testing.assert_allclose(written, audio[0, 0].clip(-1, 1), atol=2 / 32768)


def test_the_guidance_scale_of_the_pipeline_is_the_default(class_folder: Path, tmp_path: Path) -> None:
    own = SashimiPipeline.from_pretrained(class_folder)
    SashimiPipeline(own.model, own.scheduler, guidance_scale=3.0).save_pretrained(tmp_path / "guided")
    for name, arguments in {"default": [], "option": ["--guidance-scale", "1"]}.items():
        assert run(tmp_path / "guided", tmp_path / name, "--num-samples", "2", *arguments) == 0
    assert record(tmp_path / "default")["guidance_scale"] == 3
    assert record(tmp_path / "option")["guidance_scale"] == 1
    assert run(class_folder, tmp_path / "same", "--num-samples", "2", "--guidance-scale", "3") == 0
    for file in ("0000-zero.wav", "0001-one.wav"):
        audio = {name: (tmp_path / name / file).read_bytes() for name in ("default", "option", "same")}
        assert audio["default"] == audio["same"] != audio["option"]


def test_speakers_alternate_after_all_classes(speaker_folder: Path, tmp_path: Path) -> None:
    assert run(speaker_folder, tmp_path, "--num-samples", "7", "--batch-size", "2") == 0
    samples, every_pair = record(tmp_path)["samples"], [(name, who) for who in ("ann", "bob b.") for name in NAMES]
    assert [(one["class_name"], one["speaker_name"]) for one in samples] == [*every_pair, ("zero", "ann")]
    assert [one["speaker"] for one in samples] == [0, 0, 0, 1, 1, 1, 0]
    assert list(read(tmp_path))[2:4] == ["0002-two-ann.wav", "0003-zero-bob_b..wav"]
    pipe = SashimiPipeline.from_pretrained(speaker_folder)
    for one in samples:
        generator = torch.Generator().manual_seed(one["seed"])
        audio = pipe(generator=[generator], class_labels=one["label"], speaker_labels=one["speaker"]).audios
        written = soundfile.read(tmp_path / one["file"], dtype="float32")[0]
        np.testing.assert_allclose(written, audio[0, 0].clip(-1, 1), atol=2 / 32768)


def test_the_seed_gives_the_audio_of_the_pipeline_with_that_seed(plain_folder: Path, tmp_path: Path) -> None:
    run(plain_folder, tmp_path, "--num-samples", "2", "--seed", "7")
    pipe = SashimiPipeline.from_pretrained(plain_folder)
    audios = pipe(batch_size=2, generator=torch.Generator().manual_seed(7)).audios
    for written, audio in zip(read(tmp_path).values(), audios[:, 0], strict=True):
        np.testing.assert_allclose(written / 32768, audio.clip(-1, 1), atol=2 / 32768)


def test_clipping_is_counted(plain_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pipe = SashimiPipeline.from_pretrained(plain_folder)
    pipe.model.register_to_config(waveform_std=1.0)
    pipe.save_pretrained(tmp_path / "loud")
    run(tmp_path / "loud", tmp_path / "out", "--num-samples", "2")
    audios = pipe(batch_size=2, generator=torch.Generator().manual_seed(0)).audios
    expected = float((np.abs(audios) > 1).mean())
    assert expected > 0.01
    assert record(tmp_path / "out")["clip_ratio"] == pytest.approx(expected, abs=0.005)
    assert f"clipped {100 * record(tmp_path / 'out')['clip_ratio']:.3f} %" in capsys.readouterr().out


def test_the_batch_size_does_not_change_the_audio(class_folder: Path, tmp_path: Path) -> None:
    for size in ("1", "2", "10"):
        run(class_folder, tmp_path / size, "--num-samples", "5", "--batch-size", size)
    assert_same_audio(tmp_path / "1", tmp_path / "2")
    assert_same_audio(tmp_path / "1", tmp_path / "10")


def test_several_processes_generate_the_samples_of_one(class_folder: Path, tmp_path: Path) -> None:
    run(class_folder, tmp_path / "one", "--num-samples", "5", "--batch-size", "2")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "-m", "sashimi_diffusion.commands.sample", "--pipeline", str(class_folder)]
    command += ["--num-samples", "5", "--batch-size", "2", "--out", str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.count("real-time factor") == 1
    assert "batch 2/2" in done.stderr  # the first process generates two of the three batches
    assert_same_audio(tmp_path / "one", tmp_path / "two")
    one, two = record(tmp_path / "one"), record(tmp_path / "two")
    for each in (one, two):
        each.pop("command")
    assert one == two
    assert (
        Image.open(tmp_path / "one" / "contact_sheet.png").size == Image.open(tmp_path / "two/contact_sheet.png").size
    )


def test_scheduler_steps_seconds_and_dtype(plain_folder: Path, tmp_path: Path) -> None:
    options = ["--scheduler", "dpmsolver++-karras", "--steps", "4", "--seconds", "0.3", "--dtype", "bfloat16"]
    assert run(plain_folder, tmp_path, "--num-samples", "1", *options) == 0
    made = record(tmp_path)
    assert made["scheduler"]["name"] == "DPMSolverMultistepScheduler"
    assert made["scheduler"]["steps"] == 4
    assert made["scheduler"]["config"]["use_karras_sigmas"]
    assert (made["dtype"], made["samples_per_clip"]) == ("bfloat16", 300)
    assert made["samples"][0]["label"] is None
    assert made["samples"][0]["speaker"] is None
    assert read(tmp_path)["0000.wav"].shape == (300,)
    assert run(plain_folder, tmp_path, "--num-samples", "1", "--scheduler", "diffwave-fast", "--overwrite") == 0
    assert record(tmp_path)["scheduler"]["steps"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scheduler", "unipk"], "unknown scheduler 'unipk', did you mean 'unipc'?"),
        (["--steps", "0"], "cannot sample in 0 steps: the model was trained with 10, so ask for 1 to 10"),
        (["--steps", "11"], "cannot sample in 11 steps"),
        (["--steps", "many"], "argument --steps: invalid int value: 'many'"),
        (["--scheduler", "diffwave-fast", "--steps", "5"], "has 6 steps"),
        (["--label", "3"], "no class '3' (this model has 0 to 2 or zero, one, two)"),
        (["--label", "zeros"], "did you mean 'zero'?"),
        (["--label", "-1"], "no class '-1'"),
        (["--label", "0,"], "no class ''"),
        (["--speaker", "ann"], "--speaker was given, but this model has no speakers: leave it out"),
        (["--label", "0" * 5000], "no class '0000"),
        (["--label", "9" * 5000], "no class '9999"),
        (["--guidance-scale", "nan"], "guidance_scale is nan"),
        (["--guidance-scale", "1e308"], "guidance_scale is 1e+308, expected a number from -1e+06 to 1e+06"),
        (["--guidance-scale=-1e7"], "guidance_scale is -1e+07, expected a number from"),
        (["--steps", "1000000000"], "cannot sample in 1000000000 steps"),
        (["--steps", "1e9"], "argument --steps: invalid int value: '1e9'"),
        (["--steps", "7" * 5000], "argument --steps: invalid int value: '7777"),
        (["--seconds", "1e308"], "cannot generate 1e+308 seconds of audio: ask for a number above 0, up to"),
        (["--seconds", "5e6", "--batch-size", "1"], "ask for fewer --seconds"),
        (["--num-samples", "1" + "0" * 18], "expected 1 to 1,000,000,000"),
        (["--num-samples", "1000000000"], "ask for fewer --num-samples"),
        (["--seconds", "1e9"], "ask for fewer --seconds"),
        (["--seconds", "0"], "cannot generate 0 seconds"),
        (["--seconds", "-1"], "cannot generate -1 seconds"),
        (["--seconds", "nan"], "cannot generate nan seconds"),
        (["--seconds", "inf"], "cannot generate inf seconds"),
        (["--num-samples", "0"], "--num-samples is 0"),
        (["--batch-size", "-2"], "--batch-size is -2"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--seed", str(2**63)], "--seed is 9223372036854775808, expected a number from 0"),
        (["--seed", "9" * 5000], "argument --seed: invalid int value: '9999"),
        (["--device", "cuda:99"], "the device 'cuda:99' cannot be used"),
        (["--device", "toaster"], "the device 'toaster' cannot be used"),
        (["--device", "meta"], "the device 'meta' cannot be used"),
        (["--device", "hpu"], "the device 'hpu' cannot be used"),
        (["--device", ""], "the device '' cannot be used"),
        (["--device", "cuda\x1b[2J"], r"cuda\x1b[2J"),
        (["--out", ""], "argument --out: expected a path, got an empty text"),
        (["--pipeline", "x" * 5000], "File name too long"),
        (["--stream", "x.wav"], "--stream does not apply: "),
        (["--dtype", "float99"], "argument --dtype: invalid choice"),
        (["--surprise"], "unrecognized arguments: --surprise"),
        (["--surprise\n\x1b"], r"unrecognized arguments: --surprise\n\x1b"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], message: str, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    kept = tmp_path / "0000-zero.wav"
    kept.write_text("made earlier")
    assert run(class_folder, tmp_path, *arguments) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert kept.read_text() == "made earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["0000-zero.wav"]


def only_error(capsys: pytest.CaptureFixture) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_labels_need_classes(plain_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(plain_folder, tmp_path, "--label", "1") == 2
    assert "has no classes" in only_error(capsys)
    assert run(plain_folder, tmp_path, "--guidance-scale", "2") == 2
    assert "no class_labels" in only_error(capsys)


def test_a_vocoder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = save_pipeline(tmp_path / "vocoder", mel_channels=4)
    assert run(folder, tmp_path / "out") == 2
    assert "vocoder" in only_error(capsys)


def test_an_output_folder_that_cannot_be_created(
    class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert run(class_folder, out) == 2
        assert only_error(capsys) == f"error: --out {out}: {tmp_path / 'file'} is a file, expected a folder"
    assert run(class_folder, Path("/proc/none/of/it")) == 2
    assert "cannot write to /proc/none/of/it" in only_error(capsys)
    assert run(class_folder, tmp_path / "new" / ("x" * 300)) == 2
    assert "File name too long" in only_error(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_reported_before_sampling(
    class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sample_folder.shutil, "disk_usage", lambda _: type("Usage", (), {"total": 2000, "free": 1000})()
    )
    assert run(class_folder, tmp_path) == 2
    assert "needs" in only_error(capsys)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_later_leaves_a_record_of_all_clips(
    class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        with writing("the sheet"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sample_folder, "write_output_file", full)
    assert run(class_folder, tmp_path, "--num-samples", "2") == 2
    assert "the disk is full" in only_error(capsys)
    written = record(tmp_path)
    assert [clip["file"] for clip in written["samples"]] == list(read(tmp_path)) == ["0000-zero.wav", "0001-one.wav"]
    assert not written["complete"]


@pytest.mark.parametrize("name", ["model_index.json", "model/config.json", "model/diffusion_pytorch_model.safetensors"])
def test_a_broken_pipeline_folder(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = save_pipeline(tmp_path / "pipe")
    (folder / name).write_bytes(b"\x00\x01")
    assert run(folder, tmp_path / "out") == 2
    assert name in only_error(capsys)
    (folder / name).unlink()
    assert run(folder, tmp_path / "out") == 2
    assert f"{name} does not exist" in only_error(capsys)
    assert run(tmp_path / "nothing", tmp_path / "out") == 2
    assert "no pipeline" in only_error(capsys)
    assert not (tmp_path / "out").exists()


def test_running_out_of_memory_is_reported(
    class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_diffusion, "require_memory", lambda *_: None)
    monkeypatch.setattr(sashimi, "require_call_memory", lambda *_, **__: None)
    for check in ("require_space", "require_wav_size"):
        monkeypatch.setattr(sample_diffusion, check, lambda *_: None)
    assert run(class_folder, tmp_path / "new" / "out", "--seconds", "1e14", "--num-samples", "1") == 2
    assert "out of memory: ask for fewer --seconds or a smaller --batch-size" in only_error(capsys)
    assert not (tmp_path / "new").exists()


def test_other_runtime_errors_are_not_reported_as_out_of_memory() -> None:
    with pytest.raises(RuntimeError, match="something else"), memory.report_out_of_memory():
        raise RuntimeError("something else")


def test_an_interrupt_exits_with_code_130(class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sample_diffusion, "generate", interrupted)
    assert run(class_folder, tmp_path) == 130


def test_programming_errors_keep_their_traceback(
    class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a fault of ours")

    monkeypatch.setattr(sample_diffusion, "generate", broken)
    with pytest.raises(ValueError, match="a fault of ours"):
        run(class_folder, tmp_path)


def test_help_has_examples_and_defaults(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        sample.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "sashimi-sample --steps 200" in text
    assert "(default: sashimi-digits)" in text
    assert "None" not in text


def test_a_process_exits_with_one_line_and_does_not_import_torchaudio(tmp_path: Path) -> None:
    """Check the exit code, the error, and that torchaudio, which may fail with a CPU-only torch, is not imported.

    transformers, which comes with peft, imports torchaudio itself; it is hidden from diffusers.
    """
    code = (
        "import importlib.util as util; find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name in ('transformers', 'peft') else find(name, *rest)\n"
        "import sys; from sashimi_diffusion.commands.sample import main; status = main(sys.argv[1:]); "
        "assert 'torchaudio' not in sys.modules; sys.exit(status)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, "--pipeline", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: no pipeline")
    assert done.stderr.count("\n") == 1


def test_list_names_the_bundled_pipelines(capsys) -> None:
    assert sample.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(bundled_folders())
    assert all(" kHz, " in line for line in lines)
    assert lines[0].split()[:2] == ["sashimi-digits", "diffusion"]
    assert "george" in lines[0]
