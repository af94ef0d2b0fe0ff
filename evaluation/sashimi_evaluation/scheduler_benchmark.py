"""Measure every sampler that fits a pipeline: level, peak, clipped samples and label accuracy.

    python -m sashimi_evaluation.scheduler_benchmark --out recipes/logs/schedulers.json
    python -m sashimi_evaluation.scheduler_benchmark --scheduler heun,unipc --steps 20 --clips 10

All samplers start from the same noise and labels. Levels are relative to the reference: the same clips from the
pipeline's own scheduler with all of its steps. ``--out`` is written after every row, and its other rows are kept, so a
measurement can be interrupted and done in parts: ``--steps 6,20`` takes ten minutes of one core, everything an hour.
"""

import argparse
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sashimi_diffusion import SashimiPipeline
from sashimi_diffusion.command_line import Parser, path_argument, positive, positive_numbers, run, select_device
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.output_files import check_output_files, write_output_file
from sashimi_diffusion.paths import is_file, read_json
from sashimi_diffusion.pipelines.labels import labels_in_turn
from sashimi_diffusion.schedulers import create_scheduler, fitting_schedulers
from sashimi_diffusion.schedulers.compatible import ALL_SCHEDULERS
from sashimi_diffusion.strict_json import json_text
from sashimi_diffusion.terminal import say
from sashimi_evaluation.classifiers import WordClassifier
from sashimi_evaluation.classifiers.loading import bundled_classifiers
from sashimi_evaluation.clips import class_index
from sashimi_evaluation.metrics.intervals import wilson_interval

STEPS = (6, 20, 50, 200)
_BATCH = 20

Row = dict[str, Any]


def generate(pipe: SashimiPipeline, steps: int | None, clips: int, seed: int) -> np.ndarray:
    """Return ``clips`` waveforms, float32 (clips, C, L); clip n has the same noise and labels for every scheduler."""
    classes, speakers = labels_in_turn(pipe.model.config, clips)
    batches = []
    for start in range(0, clips, _BATCH):
        part = range(start, min(start + _BATCH, clips))
        audios = pipe(
            batch_size=len(part),
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(seed + index) for index in part],
            class_labels=None if classes is None else [classes[index] for index in part],
            speaker_labels=None if speakers is None else [speakers[index] for index in part],
        ).audios
        batches.append(audios)
    return np.concatenate(batches)


def power(audios: np.ndarray) -> list[float]:
    """Return the mean square of each clip."""
    return [float(value) for value in (audios.astype(np.float64) ** 2).mean(axis=(1, 2))]


def measure(
    pipe: SashimiPipeline, name: str, steps: int, reference: list[float], classifier: WordClassifier | None, seed: int
) -> Row:
    """Return the row of a sampler: as many clips as ``reference`` has; or the reason of the pipeline's refusal.

    Args:
        pipe: the pipeline; its scheduler is replaced.
        name: one of ``ALL_SCHEDULERS``.
        steps: number of sampling steps.
        reference: mean square of each clip of the reference.
        classifier: says which class each clip is; None: no label accuracy.
        seed: seed of the first clip.
    """
    row: Row = {"scheduler": name, "steps": steps, "clips": len(reference), "warning": None, "refused": None}
    started = time.perf_counter()
    try:
        pipe.scheduler = create_scheduler(name, pipe.scheduler.config)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            audios = generate(pipe, steps, len(reference), seed)
    except UserError as error:
        return {**row, "refused": str(error)}
    said = [str(warning.message) for warning in caught if "steps" in str(warning.message)]
    row |= {"warning": said[0] if said else None, "seconds": round(time.perf_counter() - started, 1)}
    row["evaluations"] = len(pipe.scheduler.timesteps)
    if not np.isfinite(audios).all():
        return {**row, "refused": "samples that are not finite"}
    row |= {
        "level_db": round(10 * math.log10(max(sum(power(audios)), 1e-20) / sum(reference)), 2),
        "peak": round(float(np.abs(audios).max()), 3),
        "clipped": round(float((np.abs(audios) > 1).mean()), 6),
    }
    labels = labels_in_turn(pipe.model.config, len(reference))[0]
    if labels is not None and classifier is not None:
        names = class_names(pipe)
        expected = np.array([class_index(names[label], classifier.class_names) for label in labels])
        probabilities = classifier.classify(audios.mean(axis=1), pipe.model.config.sample_rate)[1]
        correct = int((probabilities.argmax(axis=1) == expected).sum())
        interval = wilson_interval(correct, len(labels))
        row |= {"correct": correct, "low": round(interval.low, 4), "high": round(interval.high, 4)}
    return row


def class_names(pipe: SashimiPipeline) -> list[str]:
    """Return the names of the classes of a pipeline; ten classes without names are the digits."""
    config = pipe.model.config
    return list(config.class_names or (map(str, range(10)) if config.num_classes == 10 else ()))


def fitting_classifier(names: list[str], device: torch.device) -> WordClassifier | None:
    """Return the first bundled classifier that knows all these classes, or None."""
    bundled = bundled_classifiers(device)
    known = (each for each in bundled if all(class_index(name, each.class_names) >= 0 for name in names))
    return next(known, None) if names else None


def table(rows: list[Row], numbers: list[int]) -> str:
    """Return the rows as a Markdown table: a line for each sampler, a column for each number of steps."""
    found = {(row["scheduler"], row["steps"]): row for row in rows}
    lines = [
        "| sampler | " + " | ".join(f"{steps} steps" for steps in numbers) + " |",
        "|---" * (len(numbers) + 1) + "|",
    ]
    for name in ALL_SCHEDULERS:
        cells = [_cell(found.get((name, steps))) for steps in numbers]
        if any(cells):
            lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row["refused"]:
        return "refused"
    clipped = f", {100 * row['clipped']:.2f} % clipped" if row["clipped"] else ""
    text = f"{row['level_db']:+.1f} dB, {row['peak']:.2f}{clipped}"
    if "correct" in row:
        accuracy = 100 * row["correct"] / row["clips"]
        text = f"{accuracy:.0f} % [{100 * row['low']:.0f}, {100 * row['high']:.0f}], {text}"
    return f"({text})" if row["warning"] else text


def clip_counts(options: argparse.Namespace) -> dict[int, int]:
    """Return the number of clips for each number of steps: fewer for many steps, but at least one of each class."""
    return {steps: min(options.clips, max(10, options.clips * 20 // max(steps, 20))) for steps in options.steps}


def main() -> int:
    """Run the measurement, print a table and return the exit code."""
    return run(_measure_all)


def _measure_all() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--pipeline", default="sashimi-digits", help="a folder or the name of a bundled pipeline")
    parser.add_argument("--scheduler", type=_names, metavar="NAMES", help="default: all that fit the pipeline")
    parser.add_argument(
        "--steps", type=positive_numbers, default=list(STEPS), metavar="NUMBERS", help="numbers of steps"
    )
    parser.add_argument("--clips", type=positive, default=20, help="clips up to 20 steps; for more steps down to 10")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first clip")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or another device of torch")
    parser.add_argument("--out", type=path_argument, metavar="FILE", help="JSON file for the numbers")
    options = parser.parse_args()
    check_output_files({"--out": options.out}, new_folders=True)
    pipe = SashimiPipeline.from_pretrained(options.pipeline).to(select_device(options.device))
    pipe.set_progress_bar_config(disable=True)
    names = options.scheduler or fitting_schedulers(pipe.scheduler.config)
    record = _earlier(options)
    if len(record["reference"]) < options.clips:
        say("reference")
        record["reference"] = power(generate(pipe, None, options.clips, options.seed))
        _write(options.out, record)
    classifier = fitting_classifier(class_names(pipe), pipe.device)
    for steps, clips in clip_counts(options).items():
        for name in names:
            row = measure(pipe, name, steps, record["reference"][:clips], classifier, options.seed)
            record["rows"] = [own for own in record["rows"] if (own["scheduler"], own["steps"]) != (name, steps)] + [
                row
            ]
            say(f"{name}, {steps} steps: {row['refused'] or _cell(row)}")
            _write(options.out, record)
    say(table(record["rows"], sorted({row["steps"] for row in record["rows"]})))


def _earlier(options: argparse.Namespace) -> dict[str, Any]:
    """Return the record in the output file, or a new one."""
    settings = {"pipeline": options.pipeline, "seed": options.seed}
    if options.out is None or not is_file(options.out):
        return {**settings, "reference": [], "rows": []}
    record = read_json(options.out, "the numbers of this measurement")
    if {key: record.get(key) for key in settings} != settings:
        raise UserError("--out holds a measurement with another pipeline or seed: choose another file")
    return record


def _write(path: Path | None, record: dict[str, Any]) -> None:
    if path is not None:
        write_output_file(path, (json_text(record, indent=1) + "\n").encode())


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in ALL_SCHEDULERS:
            raise argparse.ArgumentTypeError(f"unknown scheduler {name!r} (known: {', '.join(ALL_SCHEDULERS)})")
    return names


if __name__ == "__main__":
    sys.exit(main())
