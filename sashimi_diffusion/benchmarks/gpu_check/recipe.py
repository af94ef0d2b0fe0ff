"""Speed of the small recipe on generated recordings, beside that of its bare training step on one batch."""

import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch

from sashimi_diffusion.benchmarks.gpu_check.rows import Row, Setting
from sashimi_diffusion.benchmarks.gpu_check.timing import attempted, captured, median_seconds
from sashimi_diffusion.models import SashimiDenoiser
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.loop import train
from sashimi_diffusion.training.optimizer import create_optimizer
from sashimi_diffusion.training.run_folder import config_of_command

CONFIG = Path(__file__).parents[3] / "recipes" / "configs" / "digits-small.yaml"
_SECONDS = 10
_SPEAKERS = ("ann", "ben", "eva")


def measure(setting: Setting) -> Iterator[Row]:
    """Yield steps per second of the recipe and of the bare step in float32 (as configured) and bfloat16."""
    if not CONFIG.exists():
        yield Row("small recipe", problem=f"{CONFIG} does not exist: run the check in a checkout")
        return
    for precision in ("fp32", "bf16") if setting.device == "cuda" else ("fp32",):
        with tempfile.TemporaryDirectory() as folder:
            config = _config(Path(folder), precision, setting)
            recipe = attempted(
                "small recipe", precision, lambda config=config: _recipe(config, precision), setting.device
            )
            yield recipe
            if recipe.problem is not None:
                continue
            for graph in (True, False) if setting.device == "cuda" else (False,):
                variant = precision + (", graph" if graph else "")
                bare = attempted(
                    "bare step of the small recipe",
                    variant,
                    lambda config=config, variant=variant, graph=graph: _bare(config, variant, graph, setting.device),
                    setting.device,
                )
                yield bare
                if isinstance(bare.value, float) and isinstance(recipe.value, float):
                    yield Row("small recipe's share of the bare step", variant, recipe.value / bare.value)


def _config(folder: Path, precision: str, setting: Setting) -> DiffusionConfig:
    """Return the config of the recipe for a run of some seconds without validation, samples and checkpoints."""
    random = np.random.default_rng(0)
    recordings = folder / "recordings"
    recordings.mkdir()
    for digit in range(10):
        for speaker in _SPEAKERS:
            for index in range(8):
                path = recordings / f"{digit}_{speaker}_{index}.wav"
                soundfile.write(path, 0.1 * random.standard_normal(5120), 8000)
    every = (
        "validate_every=0",
        "sample_every=0",
        "checkpoint_every=0",
        "log_every=2" if setting.tiny else "log_every=10",
    )
    overrides = [
        *(f"training.{override}" for override in (*every, "trackers=[]", f"mixed_precision={precision}")),
        f"data.path={recordings}",
        f"output_dir={folder / 'run'}",
    ]
    if setting.tiny:
        overrides += ["training.steps=4", "training.batch_size=2", "model.d_model=16", "model.n_layers=1"]
    else:
        overrides += [f"training.max_minutes={_SECONDS / 60}"]
    return config_of_command(DiffusionConfig, None, CONFIG, overrides)


def _recipe(config: DiffusionConfig, precision: str) -> Row:
    """Run the recipe; the time of a step is the median of the second half of its log lines."""
    folder = train(DiffusionTask, config)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["seconds_per_step"] for line in lines if "seconds_per_step" in line]
    median = statistics.median(seconds[len(seconds) // 2 :])
    return Row("small recipe", precision, 1 / max(median, 1e-4), "steps/s")  # the log has four digits


def _bare(config: DiffusionConfig, variant: str, graph: bool, device: str) -> Row:
    """Measure forward pass, backward pass and optimizer step of the recipe's network on one batch."""
    network = SashimiDenoiser.from_config(json.loads(_network_config(config))).to(device).train()
    optimizer = create_optimizer(network, config.optimizer)
    batch = config.training.batch_size
    sample = torch.randn(batch, 1, network.config.sample_size, device=device)
    timestep, labels = (torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(2))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=variant.startswith("bf16")):
            prediction = network(sample, timestep, class_labels=labels, speaker_labels=labels).sample
        prediction.float().square().mean().backward()
        optimizer.step()

    seconds = median_seconds(captured(step) if graph else step, device)
    return Row("bare step of the small recipe", variant, 1 / seconds, "steps/s")


def _network_config(config: DiffusionConfig) -> str:
    """Return the network's config as the run saved it in its pipeline."""
    return (Path(config.output_dir) / "pipeline" / "model" / "config.json").read_text()
