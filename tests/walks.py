"""Print the files of the packages that a piece of work enters, in the order of their first call.

    python tests/walks.py waveform|batch|evaluation|conversion

These are the walks of docs/architecture.md; tests/test_walks.py compares them with the page.
"""

import contextlib
import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = [ROOT / "sashimi_diffusion", ROOT / "kernels", ROOT / "evaluation"]


@contextlib.contextmanager
def recorded(files: list[str]) -> Iterator[None]:
    """Append every file of the packages whose functions are called in the block, once each."""
    seen: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        name = frame.f_code.co_filename
        if event != "call" or name in seen or not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            return  # CO_OPTIMIZED: a function, not the body of a module or a class
        seen.add(name)
        path = Path(name)
        if any(path.is_relative_to(folder) for folder in FOLDERS):
            files.append(path.relative_to(ROOT).as_posix())

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


def recordings(folder: Path) -> Path:
    """Write noise of half a second under the names of ten digits by one speaker, three takes each."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for digit in range(10):
        for take in range(3):
            soundfile.write(folder / f"{digit}_theo_{take}.wav", 0.1 * random.standard_normal(4000), 8000)
    return folder


def waveform(folder: Path) -> Callable[[], object]:
    """From noise to a wav file: a call of the bundled pipeline."""
    from sashimi_diffusion import SashimiPipeline
    from sashimi_diffusion.data import write_audio

    pipe = SashimiPipeline.from_pretrained("sashimi-digits")
    pipe.set_progress_bar_config(disable=True)
    return lambda: write_audio(folder / "3.wav", pipe(class_labels=3, num_inference_steps=1).audios[0, 0], 8000)


def batch(folder: Path) -> Callable[[], object]:
    """From recordings to new weights: a training step of the default recipe."""
    from sashimi_diffusion.training.config import load_config
    from sashimi_diffusion.training.diffusion.config import DiffusionConfig
    from sashimi_diffusion.training.diffusion.task import DiffusionTask
    from sashimi_diffusion.training.loop import Trainer
    from sashimi_diffusion.training.packaged_configs import CONFIGS

    settings = [f"data.path={recordings(folder / 'data')}", f"output_dir={folder / 'run'}", "data.holdout={index: [0]}"]
    settings += ["training.steps=1", "training.batch_size=2", "training.trackers=[]", "sampling.num_samples=0"]
    config = load_config(DiffusionConfig, CONFIGS / "diffusion" / "digits-small.yaml", settings)
    trainer = Trainer(DiffusionTask, config, resume=False, resume_from=None, skip_bad_files=False)
    return lambda: trainer._step(0.0)


def evaluation(folder: Path) -> Callable[[], object]:
    """From features and probabilities to metrics."""
    from sashimi_evaluation import Settings, evaluate, extract_features, load_classifier, open_clips

    clips = open_clips(recordings(folder / "clips"), pattern="{label}_{speaker}_{index}")
    settings = Settings(cache_dir=folder / "cache")
    extraction = extract_features([clips], clips, None, load_classifier(), settings=settings)
    return lambda: evaluate(extraction)


def conversion(folder: Path) -> Callable[[], object]:
    """From an official checkpoint to a model and its scheduler."""
    from sashimi_diffusion.interop.diffwave import ConversionOptions, convert_diffwave

    tensors = load_file(ROOT / "tests" / "golden" / "d_diffwave" / "master_sashimi_unet_L16000.safetensors")
    state = {name.removeprefix("sd."): tensor for name, tensor in tensors.items() if name.startswith("sd.")}
    return lambda: convert_diffwave(state, ConversionOptions())


WALKS = {walk.__name__: walk for walk in (waveform, batch, evaluation, conversion)}


def main() -> None:
    """Run the walk that the command line names and print its files."""
    files: list[str] = []
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        os.environ["SASHIMI_CACHE"] = f"{name}/cache"
        run = WALKS[sys.argv[1]](Path(name))
        with recorded(files):
            run()
    print("\n".join(files))


if __name__ == "__main__":
    main()
