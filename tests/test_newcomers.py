"""Seven walks of new users with an installed wheel, outside of the checkout. `pytest -s` prints their transcripts."""

import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parent.parent
SHORT = (
    "training.batch_size=2 training.validation_examples=2 training.trackers=[] sampling.num_samples=2 sampling.steps=2"
)

pytestmark = pytest.mark.slow

Run = Callable[..., str]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment with the wheel of this checkout.

    It takes the dependencies from the environment of the tests, but not this package: a line in a .pth file makes
    packages available without running the .pth files beside them, and an editable installation is such a file.
    """
    folder = tmp_path_factory.mktemp("environment")
    pip = [sys.executable, "-m", "pip"]
    wheel = [
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    subprocess.run([*pip, *wheel], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    name = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    (folder / "venv" / name / "dependencies.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    install = [
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        *map(str, folder.glob("*.whl")),
    ]
    subprocess.run([*pip, *install], check=True)
    return python.parent


@pytest.fixture
def run(environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command in an empty folder and returns its output."""
    monkeypatch.setenv("PATH", f"{environment}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("SASHIMI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)

    def run(command: str, code: int = 0) -> str:
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=900, check=False)
        output = done.stdout + done.stderr
        print(f"$ {command}\n{output.rstrip()}\n")
        assert done.returncode == code, output
        return output

    return run


def write_tones(folder: Path, count: int, seconds: float, rate: int, channels: int = 1) -> None:
    """Write recordings of tones of different frequencies."""
    folder.mkdir(parents=True)
    time_axis = np.arange(round(seconds * rate)) / rate
    for number in range(count):
        tones = [np.sin(2 * np.pi * (200 + 40 * number + 5 * channel) * time_axis) for channel in range(channels)]
        soundfile.write(folder / f"take{number}.wav", 0.2 * np.stack(tones, axis=-1), rate)


def test_the_user_of_pip(run: Run, tmp_path: Path) -> None:
    output = run("python -c 'import sashimi_diffusion; print(sashimi_diffusion.__file__)'")
    assert str(ROOT) not in output
    assert "sashimi-diffusion" in run("sashimi-info")
    assert "sc09-sashimi-d64" in run("sashimi-train diffusion --list")
    run("sashimi-sample --steps 4 --num-samples 2 --out first")
    assert soundfile.info(tmp_path / "first" / "0000-0-george.wav").frames == 5120
    assert "already has 2 clips" in run("sashimi-sample --steps 4 --num-samples 2 --out first", code=2)
    assert "did you mean" in run("sashimi-sample --stpes 4", code=2)


def test_own_recordings(run: Run, tmp_path: Path) -> None:
    for number, word in enumerate(("high", "low")):
        write_tones(tmp_path / "mine" / word, 6 + number, 0.5, 8000)
    (tmp_path / "mine" / "low" / "broken.wav").write_text("no audio")
    output = run("sashimi-train init mine --minutes 600")
    assert "high (6)" in output
    assert "--skip-bad-files" in output
    config = (tmp_path / "mine.yaml").read_text()
    assert "class_conditional: true" in config
    run(f"sashimi-train diffusion --config mine.yaml --skip-bad-files output_dir=run training.steps=2 {SHORT}")
    output = run("sashimi-train diffusion --resume --skip-bad-files output_dir=run training.steps=3")
    assert "training.steps: 2 -> 3" in output
    run("sashimi-sample --pipeline run/pipeline --label low --num-samples 2 --steps 2 --out listen")
    assert len(list((tmp_path / "listen").glob("*-low.wav"))) == 2


def test_the_user_of_diffusers(run: Run, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        """
import torch
from diffusers import DiffusionPipeline

from sashimi_diffusion import AutoPipeline, SashimiDenoiser, SashimiPipeline
from sashimi_diffusion.schedulers import create_scheduler

pipe = AutoPipeline.from_pretrained("sashimi-digits")
pipe.scheduler = create_scheduler("dpmsolver++-sde-karras", pipe.scheduler.config)
generator = torch.Generator().manual_seed(0)
steps = []
audio = pipe(
    class_labels=["7", "3"],
    num_inference_steps=3,
    generator=generator,
    callback_on_step_end=lambda pipe, i, t, tensors: steps.append(i) or {},
).audios
print(type(pipe).__name__, audio.shape, steps)

other = SashimiPipeline.from_pipe(pipe)
print(other.config.guidance_scale == pipe.config.guidance_scale, other.model is pipe.model)
print(type(SashimiDenoiser.from_pretrained("sashimi-digits", subfolder="model")).__name__)

pipe.save_pretrained("saved")
again = DiffusionPipeline.from_pretrained("saved", trust_remote_code=True)
same = again(class_labels=["7", "3"], num_inference_steps=3, generator=torch.Generator().manual_seed(0)).audios
print("same audio:", (same == audio).all())
for wrong in ({"class_labels": "seven"}, {"class_labels": [7], "num_inference_steps": 10**6}):
    try:
        pipe(**wrong)
    except ValueError as error:
        print(error)
"""
    )
    output = run("python script.py")
    assert "SashimiPipeline (2, 1, 5120) [0, 1, 2]" in output
    assert "True True" in output
    assert "same audio: True" in output
    assert "0, 1, 2" in output


def test_two_processes(run: Run, tmp_path: Path) -> None:
    write_tones(tmp_path / "mine", 8, 0.5, 8000)
    together = "python -m torch.distributed.run --standalone --nproc-per-node 2 -m sashimi_diffusion.commands"
    settings = f"data.path=mine data.pattern=null data.length=1024 training.steps=2 {SHORT}"
    assert "on 2 x cpu" in run(f"{together}.train diffusion {settings} output_dir=run")
    run(f"{together}.sample --pipeline run/pipeline --num-samples 4 --steps 2 --out listen")
    assert len(list((tmp_path / "listen").glob("*.wav"))) == 4


def test_a_musician(run: Run, tmp_path: Path) -> None:
    write_tones(tmp_path / "stereo", 4, 3.0, 44100, channels=2)
    assert "2 channels" in run("sashimi-train init stereo --minutes 6000")
    small = "model.d_model=8 model.n_layers=[0,1,1] data.length=4096"
    run(f"sashimi-train diffusion --config stereo.yaml {small} output_dir=run training.steps=2 {SHORT}")
    run("sashimi-sample --pipeline run/pipeline --num-samples 1 --steps 2 --out listen")
    assert soundfile.info(next((tmp_path / "listen").glob("*.wav"))).channels == 2

    write_tones(tmp_path / "piano", 4, 3.0, 16000)
    run("sashimi-train init piano --autoregressive --minutes 6000")
    short = "training.batch_size=2 training.validation_examples=2 training.trackers=[] training.steps=2"
    small = "model.d_model=8 data.length=1024 sampling.num_samples=1 sampling.seconds=0.01"
    run(f"sashimi-train autoregressive --config piano.yaml {short} {small} output_dir=music")
    run(
        "sashimi-sample --pipeline music/pipeline --stream out.wav --seconds 3.02 --prefix piano/take0.wav "
        "--engine eager"
    )
    assert soundfile.info(tmp_path / "out.wav").duration > 3


def test_a_notebook(run: Run, tmp_path: Path) -> None:
    notebook = (ROOT / "examples" / "hear-it.ipynb").read_text(encoding="utf-8")
    (tmp_path / "hear-it.ipynb").write_text(re.sub(r"steps=\d+", "steps=2", notebook), encoding="utf-8")
    (tmp_path / "execute.py").write_text(
        """
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read("hear-it.ipynb", as_version=4)
NotebookClient(notebook, timeout=600).execute()
outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
print(sum("text/html" in output.get("data", {}) for output in outputs), "players")
print(sum("image/png" in output.get("data", {}) for output in outputs), "pictures")
print(notebook.cells[3]["outputs"][0]["text"])
"""
    )
    output = run("python execute.py")
    assert "7 players" in output
    assert "classes:  0 1 2 3 4 5 6 7 8 9" in output


def test_the_demo(run: Run, environment: Path) -> None:
    process = subprocess.Popen(
        [environment / "sashimi-demo", "--no-browser", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        line = next(line for line in iter(process.stdout.readline, "") if "http://" in line)
        print(f"$ sashimi-demo --no-browser --port 0\n{line}")
        address = re.search(r"http://127\.0\.0\.1:\d+", line)[0]
        deadline = time.monotonic() + 120
        page = ""
        while "sashimi" not in page.lower() and time.monotonic() < deadline:
            with urllib.request.urlopen(address, timeout=60) as answer:
                page = answer.read().decode()
        assert "sashimi" in page.lower()
    finally:
        process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
