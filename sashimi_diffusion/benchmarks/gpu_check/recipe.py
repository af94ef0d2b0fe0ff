"""Speed of the small recipe on generated recordings, beside that of its step on one batch that stays on the device."""

import contextlib
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from sashimi_diffusion.benchmarks.gpu_check.rows import Row, Setting
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.loop import Trainer
from sashimi_diffusion.training.packaged_configs import CONFIGS
from sashimi_diffusion.training.run_folder import config_of_command
from sashimi_kernels.choices import choices_file

CONFIG = CONFIGS / "diffusion" / "digits-small.yaml"
_SECONDS = 8
_BARE_SECONDS = 2


def measure(setting: Setting, optimizer: str, precision: str) -> Iterator[Row]:
    """Yield steps per second of the recipe and of its bare step, and their ratio.

    Args:
        setting: of the check.
        optimizer: "muon" as configured, or "adamw", whose step is recorded as a CUDA graph.
        precision: "fp32" or "bf16".
    """
    name, variant = "tiny recipe" if setting.tiny else "small recipe", f"{optimizer}, {precision}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _use_cache(folder / "cache")
        _write_recordings(folder / "recordings")
        recipe = _recipe(_config(folder, "run", optimizer, precision, setting))
        yield Row(name, variant, recipe, "steps/s")
        bare = _bare_step(_config(folder, "bare", optimizer, precision, setting), setting)
        yield Row(f"bare step of the {name}", variant, bare, "steps/s")
        yield Row(f"{name}'s share of the bare step", variant, recipe / bare)


def _use_cache(folder: Path) -> None:
    """Cache the recordings in ``folder``, with the choices of kernels of this computer."""
    choices = choices_file()
    folder.mkdir()
    if choices.exists():
        shutil.copy(choices, folder)
    os.environ["SASHIMI_CACHE"] = str(folder)


def _write_recordings(folder: Path) -> None:
    random = np.random.default_rng(0)
    folder.mkdir()
    for digit in range(10):
        for speaker in ("ann", "ben", "eva"):
            for index in range(8):
                path = folder / f"{digit}_{speaker}_{index}.wav"
                soundfile.write(path, 0.1 * random.standard_normal(5120), 8000)


def _config(folder: Path, run: str, optimizer: str, precision: str, setting: Setting) -> DiffusionConfig:
    """Return the config of the recipe for a run of some seconds without validation, samples and checkpoints."""
    training = ["validate_every=0", "sample_every=0", "checkpoint_every=1000000", "trackers=[]"]
    training += [
        f"mixed_precision={precision}",
        *(["steps=3", "batch_size=2", "log_every=1", "cpu_threads=1"] if setting.tiny else []),
    ]
    overrides = [f"training.{override}" for override in training]
    overrides += [f"data.path={folder / 'recordings'}", f"output_dir={folder / run}", f"optimizer.name={optimizer}"]
    overrides += ["optimizer.lr=1.0e-3"] if optimizer == "adamw" else []
    overrides += ["model.d_model=16", "model.n_layers=1"] if setting.tiny else [f"training.max_minutes={_SECONDS / 60}"]
    return config_of_command(DiffusionConfig, None, CONFIG, overrides)


def _trainer(config: DiffusionConfig) -> Any:
    task_class: Any = DiffusionTask
    return Trainer(task_class, config, resume=False, resume_from=None, skip_bad_files=False)


def _recipe(config: DiffusionConfig) -> float:
    """Run the recipe and return its steps per second: the median of the second half of its log lines."""
    trainer = _trainer(config)
    trainer.run()
    lines = [json.loads(line) for line in (trainer.folder / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["seconds_per_step"] for line in lines if "seconds_per_step" in line]
    return 1 / max(statistics.median(seconds[len(seconds) // 2 :]), 1e-4)  # the log has four digits


def _bare_step(config: DiffusionConfig, setting: Setting) -> float:
    """Return the steps per second of the trainer's step on one batch."""
    trainer = _trainer(config)
    with contextlib.closing(trainer.feed):
        trainer.step.parts.feed = _OneBatch(trainer.feed)
        steps = 0
        for seconds in (0, 0) if setting.tiny else (_BARE_SECONDS, _BARE_SECONDS):  # the first round is a warm-up
            begin, first = time.perf_counter(), steps
            while steps == first or time.perf_counter() - begin < seconds:
                for _ in range(config.training.log_every):
                    trainer.step.run(steps)
                    steps += 1
                trainer.step.read()
            if setting.device == "cuda":
                torch.cuda.synchronize()
            rate = (steps - first) / (time.perf_counter() - begin)
    return rate


class _OneBatch:
    """A feed with the same batches at every step."""

    def __init__(self, feed: Any) -> None:
        self.device, self._batches = feed.device, list(feed.batches(0))

    def batches(self, step: int) -> list[Any]:
        """Return the arguments of :meth:`Task.loss` for each accumulation step."""
        return self._batches
