"""Benchmark of time and memory: the metrics of this package and the official algorithms on the same arrays.

    python -m sashimi_evaluation.benchmark
    python -m sashimi_evaluation.benchmark --arrays metrics.safetensors

Without ``--arrays`` the arrays are random, with the sizes of the protocol: 2,048 clips, 1,024 features, 10 classes.
"""

import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from sashimi_diffusion.command_line import Parser, path_argument, positive, run
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import require_file
from sashimi_diffusion.terminal import one_line, printable
from sashimi_evaluation.metrics.frechet import frechet_distance
from sashimi_evaluation.metrics.inception import am_score, inception_score, modified_classifier_score
from sashimi_evaluation.metrics.ndb import ndb
from sashimi_evaluation.metrics.official import (
    official_frechet_distance,
    official_inception_score,
    official_modified_inception_score,
    official_ndb,
)

CLASSES = 10
_NAMES = ("feat_data", "feat_gen", "probs_data", "probs_gen")

Arrays = dict[str, np.ndarray]


def random_arrays(clips: int, width: int, seed: int = 0) -> Arrays:
    """Return random features (clips, width) and probabilities (clips, 10) of two sets, see :func:`read_arrays`."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((width, width)) / width**0.5
    features = {
        side: random.standard_normal((clips, width)) @ mixing + shift for side, shift in (("data", 0), ("gen", 0.1))
    }
    logits = {side: scale * random.standard_normal((clips, CLASSES)) for side, scale in (("data", 6), ("gen", 4))}
    probs = {side: np.exp(values) / np.exp(values).sum(axis=1, keepdims=True) for side, values in logits.items()}
    return {
        **{f"feat_{side}": values for side, values in features.items()},
        **{f"probs_{side}": values for side, values in probs.items()},
    }


def read_arrays(path: Path) -> Arrays:
    """Load the arrays of a safetensors file.

    It contains the features ``feat_data`` and ``feat_gen`` (clips, width) and the class probabilities ``probs_data``
    and ``probs_gen`` (clips, classes) of real and of generated clips. All names may start with ``in.``.

    Raises:
        UserError: there is no such file, it is no safetensors file, or it lacks an array.
    """
    require_file(path, "a safetensors file")
    try:
        arrays = {name.removeprefix("in."): values for name, values in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {printable(path)} as a safetensors file: {one_line(error)}") from error
    missing = [name for name in _NAMES if name not in arrays]
    if missing:
        raise UserError(f"{printable(path)} has no {missing[0]}: expected the arrays {', '.join(_NAMES)}")
    return arrays


def compared_functions(arrays: Arrays) -> list[tuple[str, Callable[[], float], Callable[[], float] | None]]:
    """Return the name, the function of this package and the official algorithm (None if the same) of each metric."""
    data, samples = arrays["feat_data"], arrays["feat_gen"]
    real, generated = arrays["probs_data"], arrays["probs_gen"]
    return [
        ("FID", lambda: frechet_distance(data, samples), lambda: official_frechet_distance(data, samples)),
        ("IS", lambda: inception_score(generated, splits=1)[0], lambda: official_inception_score(generated)),
        (
            "mCS (mIS)",
            lambda: modified_classifier_score(generated),
            lambda: official_modified_inception_score(generated),
        ),
        ("AM", lambda: am_score(real, generated), None),
        ("NDB/K", lambda: ndb(data, samples).share, lambda: official_ndb(data, samples)),
    ]


def measure(function: Callable[[], float]) -> tuple[float, float, float]:
    """Return the value, the time of the second call in seconds and the peak memory of the first call in megabytes."""
    tracemalloc.start()
    value = function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    started = time.perf_counter()
    function()
    return value, time.perf_counter() - started, peak / 1e6


def main() -> int:
    """Run the benchmark, print a table and return the exit code."""
    return run(_measure_all)


def _measure_all() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--arrays", type=path_argument, metavar="FILE", help="safetensors file with the arrays")
    parser.add_argument("--clips", type=positive, default=2048, help="clips in each random set")
    parser.add_argument("--width", type=positive, default=1024, help="number of random features")
    options = parser.parse_args()
    arrays = read_arrays(options.arrays) if options.arrays else random_arrays(options.clips, options.width)
    print("| metric | this package | | | official algorithm | | |\n|---|---|---|---|---|---|---|")
    for name, ours, official in compared_functions(arrays):
        cells = [
            f"{value:.7g} | {seconds * 1000:.1f} ms | {megabytes:.1f} MB"
            for value, seconds, megabytes in [measure(ours), *([measure(official)] if official else [])]
        ]
        print(f"| {name} | {' | '.join(cells)} |" + ("" if official else " the same | | |"))


if __name__ == "__main__":
    sys.exit(main())
