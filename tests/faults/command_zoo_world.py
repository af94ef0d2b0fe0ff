"""The working folder of the command zoo: small pipelines, recordings, a run, and files that no command can use."""

import copy
import os
import shutil
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file

from sashimi_diffusion.models import SashimiAutoregressive, WaveNetDenoiser
from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline, SashimiPipeline
from sashimi_diffusion.schedulers import DiffWaveScheduler
from sashimi_diffusion.training.yaml_files import write_yaml
from sashimi_evaluation.classifiers import SmallClassifier
from sashimi_evaluation.listening_test import write_listening_test
from tests.faults.forked import Call, children
from tests.faults.forked_server import copy_folder

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
RATE = 8000

DATA = {"path": "digits", "sample_rate": RATE, "length": 128, "pattern": "{label}_{speaker}_{index}"}
TRAINING = {
    "steps": 2,
    "batch_size": 2,
    "mixed_precision": "fp32",
    "cpu_threads": 1,
    "log_every": 1,
    "checkpoint_every": 1,
    "validate_every": 0,
    "sample_every": 0,
    "trackers": [],
}
DIFFUSION = {
    "output_dir": "new-run",
    "model": {
        "name": "wavenet",
        "residual_channels": 4,
        "skip_channels": 4,
        "n_layers": 2,
        "dilation_cycle": 2,
        "embedding_sines": 4,
        "embedding_hidden": 8,
        "embedding_dim": 8,
        "waveform_std": None,
    },
    "data": DATA | {"holdout": {"index": [0]}},
    "training": TRAINING,
    "sampling": {"num_samples": 1, "steps": 1},
}
AUTOREGRESSIVE = {
    "output_dir": "new-run",
    "model": {"name": "sashimi", "d_model": 8, "n_layers": 1, "pool": [4], "n_state": 4},
    "data": DATA | {"holdout": {"index": [0]}, "test": False},
    "training": TRAINING,
    "sampling": {"num_samples": 1, "engine": "eager"},
}
CLASSIFIER = {
    "output_dir": "new-run",
    "model": {"name": "small", "embedding": "speech-embedding"},
    "data": {"sources": {"tones": {"path": "digits", "pattern": DATA["pattern"], "holdout": {"index": [0]}}}},
    "training": TRAINING,
}
CONFIGS = {"diffusion": DIFFUSION, "autoregressive": AUTOREGRESSIVE, "classifier": CLASSIFIER}


def make_world(folder: Path) -> Path:
    """Make the working folder that every call gets a copy of."""
    folder.mkdir(parents=True)
    _write_recordings(folder)
    _save_pipelines(folder)
    _save_checkpoints(folder)
    _write_useless_files(folder)
    for name, config in CONFIGS.items():
        (folder / f"{name}.yaml").write_text(write_yaml(config))
    digits = {"real": sorted((folder / "digits").glob("*.wav")), "ours": sorted((folder / "samples").glob("*.wav"))}
    key = write_listening_test(folder / "test", digits, clips_per_method=2)
    shutil.move(key, folder / "test.key.json")
    (folder / "answers.csv").write_text("rater,test,item\n")
    _make_run(folder)
    return folder


def _tone(number: int) -> np.ndarray:
    time = np.arange(600 + 20 * number) / RATE
    noise = 0.02 * np.random.default_rng(number).standard_normal(len(time))
    return 0.3 * np.sin(2 * np.pi * (200 + 70 * number) * time) + noise


def _write_recordings(folder: Path) -> None:
    for name, count, first in (("digits", 20, 0), ("samples", 4, 20)):
        (folder / name).mkdir()
        for number in range(count):
            path = folder / name / f"{number % 10}_{'ab'[number % 2]}_{number // 10}.wav"
            soundfile.write(path, _tone(first + number), RATE)
    soundfile.write(folder / "prefix.wav", 0.5 * np.sin(np.arange(100) / 7), RATE)
    soundfile.write(folder / "silent.wav", np.zeros(100), RATE)
    soundfile.write(folder / "nan.wav", np.full(100, np.nan, np.float32), RATE, subtype="FLOAT")
    soundfile.write(folder / "long.wav", 0.5 * np.sin(np.arange(4000) / 7), RATE)
    whole = (folder / "prefix.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[:-60])
    (folder / "bad").mkdir()
    (folder / "bad" / "0_a_0.wav").write_bytes(whole[:30])
    (folder / "bad" / "1_a_0.wav").write_text("not audio")


def _save_pipelines(folder: Path) -> None:
    torch.manual_seed(0)
    small = {"residual_channels": 4, "skip_channels": 4, "n_layers": 2, "dilation_cycle": 2}
    small |= {"embedding_sines": 4, "embedding_hidden": 8, "embedding_dim": 8, "sample_rate": 1000, "sample_size": 200}
    names = {"num_classes": 2, "class_names": ["zero", "one"], "num_speakers": 2, "speaker_names": ["ann", "bob"]}
    mel = {"mel_channels": 4, "mel_upsample": [4, 4]}
    for name, options in {"tones": {}, "words": names, "vocoder": mel}.items():
        SashimiPipeline(WaveNetDenoiser(**small, **options), DiffWaveScheduler(4)).save_pretrained(folder / name)
    model = SashimiAutoregressive(sample_rate=RATE, sample_size=200, d_model=8, n_layers=1, n_state=4).eval()
    SashimiAutoregressivePipeline(model).save_pretrained(folder / "piano")
    broken = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(float("nan"))
    SashimiAutoregressivePipeline(broken).save_pretrained(folder / "nan-piano")
    SmallClassifier(channels=(4, 4, 8, 16)).save_pretrained(folder / "classifier")


def _save_checkpoints(folder: Path) -> None:
    """Write official checkpoints, and files that look like one."""
    for name, file in {
        "wavenet": "d_diffwave/master_wavenet_uncond",
        "piano": "c_ar/v4_sashimi-sc09-unet_small",
    }.items():
        tensors = load_file(GOLDEN / f"{file}.safetensors")
        state = {key.removeprefix("sd."): value for key, value in tensors.items() if key.startswith("sd.")}
        torch.save(state, folder / f"{name}.pkl")
    whole = (folder / "wavenet.pkl").read_bytes()
    (folder / "cut.pkl").write_bytes(whole[: len(whole) // 2])
    (folder / "lfs.pkl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    torch.save([1, 2], folder / "list.pkl")
    torch.save({}, folder / "nothing.pkl")
    torch.save({"weight": torch.zeros(3)}, folder / "other.pkl")
    shutil.copy(folder / "prefix.wav", folder / "audio.pkl")
    (folder / "text.pkl").write_text("hello\n")
    (folder / "text.safetensors").write_text("hello\n")


def _write_useless_files(folder: Path) -> None:
    (folder / "notes.txt").write_text("notes\n")
    (folder / "nothing.txt").write_bytes(b"")
    (folder / "binary.bin").write_bytes(bytes(range(256)))
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "list.json").write_text("[1]\n")
    for name in ("empty", "secret", "readonly", "full"):
        (folder / name).mkdir()
    (folder / "full" / "mine.txt").write_text("mine\n")
    (folder / "secret.txt").write_text("secret\n")
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("not-there/file")
    (folder / "null").symlink_to(os.devnull)
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "link.json").symlink_to("target.json")
    (folder / "target.json").write_text("{}\n")
    (folder / "loops").mkdir()
    (folder / "loops" / "again").symlink_to(".")
    (folder / "alias.yaml").write_text(
        "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    )
    (folder / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    (folder / "list.yaml").write_text("- 1\n")
    (folder / "text.yaml").write_text("hello\n")
    (folder / "deep.yaml").write_text("a: " + "[" * 20_000)
    (folder / "broken.yaml").write_text("seed: [1\n")
    (folder / "latin.yaml").write_bytes("output_dir: caf\u00e9\n".encode("latin-1"))
    (folder / "tagged.yaml").write_text("seed: !!python/object/apply:os.getcwd []\n")


def _make_run(folder: Path) -> None:
    """Train for two steps; the run becomes part of the folder."""
    place = folder.with_name("run-of-the-zoo")
    place.mkdir()
    copy_folder(folder, place / "work")
    result = children().run(
        Call("train_diffwave_sashimi.py", ("--config", "diffusion.yaml", "output_dir=run")), place / "work"
    )
    assert result.code == 0, result.err
    shutil.move(place / "work" / "run", folder / "run")
