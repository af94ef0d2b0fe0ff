"""Print the files of the packages that one command enters, in the order of their first call.

    python tests/walks.py waveform|batch|evaluation|conversion

These are the walks of docs/architecture.md; tests/test_walks.py compares them with the page.
"""

import contextlib
import importlib.util
import inspect
import io
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
FOLDERS = [ROOT / "recipes", ROOT / "sashimi_diffusion", ROOT / "kernels", ROOT / "evaluation"]


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
    """Ten digits by one speaker, three takes each: noise of half a second."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for digit in range(10):
        for take in range(3):
            soundfile.write(folder / f"{digit}_theo_{take}.wav", 0.1 * random.standard_normal(4000), 8000)
    return folder


def waveform(folder: Path) -> Callable[[], int]:
    """From noise to a wav file: sashimi-sample with the bundled pipeline."""
    from sashimi_diffusion.commands.sample import main

    return lambda: main(["--num-samples", "1", "--steps", "2", "--out", str(folder / "samples")])


def batch(folder: Path) -> Callable[[], int]:
    """From recordings to an optimizer step and a checkpoint: the diffusion recipe."""
    path = ROOT / "recipes" / "train_diffwave_sashimi.py"
    spec = importlib.util.spec_from_file_location("recipe", path)
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    short = ["training.steps=1", "training.batch_size=2", "training.trackers=[]", "sampling.num_samples=0"]
    sys.argv = [str(path), f"data.path={recordings(folder / 'data')}", f"output_dir={folder / 'run'}", *short]
    sys.argv += ["data.holdout={index: [0]}"]
    return recipe.main


def evaluation(folder: Path) -> Callable[[], int]:
    """From clips to a table and a record: sashimi-evaluate."""
    from sashimi_evaluation.commands.evaluate import main

    clips = recordings(folder / "clips")
    options = ["--pattern", "{label}_{speaker}_{index}", "--sample-pattern", "{label}_{speaker}_{index}"]
    options += ["--hold-out", "index=0", "--resamples", "3", "--json", str(folder / "evaluation.json")]
    return lambda: main([str(clips), "--reference", str(clips), *options])


def conversion(folder: Path) -> Callable[[], int]:
    """From an official checkpoint to a pipeline folder: sashimi-convert."""
    from sashimi_evaluation.commands.convert import main

    tensors = load_file(ROOT / "tests" / "golden" / "d_diffwave" / "master_sashimi_unet_L16000.safetensors")
    state = {name.removeprefix("sd."): tensor for name, tensor in tensors.items() if name.startswith("sd.")}
    torch.save({"model_state_dict": state}, folder / "official.pkl")
    return lambda: main([str(folder / "official.pkl"), str(folder / "converted")])


WALKS = {walk.__name__: walk for walk in (waveform, batch, evaluation, conversion)}


def main() -> int:
    """Run the walk that the command line names and print its files."""
    files: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        os.environ["SASHIMI_CACHE"] = f"{name}/cache"
        command = WALKS[sys.argv[1]](Path(name))
        with recorded(files), contextlib.redirect_stdout(io.StringIO()):
            code = command()
    print("\n".join(files))
    return code


if __name__ == "__main__":
    sys.exit(main())
