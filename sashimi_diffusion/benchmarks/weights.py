"""Measure how the formats of the weights change an autoregressive model: log-probabilities and bits per sample.

    python -m sashimi_diffusion.benchmarks.weights runs/piano/pipeline recordings

The model predicts every sample of the recordings from the true samples before it, once for each format of the compiled
engine. Differences are those from float32, in nats: of the log-probability of the recorded samples, and of all tokens
at each sample. Recordings should be held out from training.
"""

import argparse
import copy
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sashimi_diffusion.command_line import Parser, path_argument, positive, run
from sashimi_diffusion.data.audio import EXTENSIONS, read_audio
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation import WEIGHTS
from sashimi_diffusion.generation.engines import require_engine
from sashimi_diffusion.paths import is_folder
from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline
from sashimi_diffusion.ssm import frozen
from sashimi_diffusion.ssm.pointwise import Pointwise
from sashimi_diffusion.terminal import counted, printable

_CHUNK = 2**13  # samples in one pass


class Comparison(NamedTuple):
    """A format of the weights beside float32.

    Args:
        bits_per_sample: negative log-likelihood of the recordings per sample, in bits.
        difference: of ``bits_per_sample`` from that of float32, divided by the latter.
        largest: largest difference of the log-probability of a recorded sample, in nats.
        largest_of_all: the same over all tokens at each sample, however improbable.
        root_mean_square: root mean square of the differences of recorded samples, in nats.
    """

    bits_per_sample: float
    difference: float
    largest: float
    largest_of_all: float
    root_mean_square: float


def main() -> int:
    """Print the table and return the exit code."""
    return run(_measure)


def _measure() -> None:
    options = _options()
    pipe = SashimiAutoregressivePipeline.from_pretrained(options.pipeline)
    require_engine("numba", pipe.model, torch.device("cpu"))
    files = [file for path in options.recordings for file in _audio_files(path)][: options.number]
    rate = pipe.model.config.sample_rate
    seconds = options.samples / rate
    recordings = [pipe.prefix_tokens(read_audio(file, rate, max_seconds=seconds)) for file in files]
    total = sum(tokens.shape[1] for tokens in recordings)
    print(f"{printable(options.pipeline)}: {counted(len(files), 'recording')}, {total:,} samples")
    for name, row in compare(pipe.model, recordings, options.weights).items():
        print(
            f"{name:>9}: {row.bits_per_sample:.4f} bits per sample ({row.difference:+.4%}); log-probabilities differ "
            f"by at most {row.largest:.2e}, of all tokens {row.largest_of_all:.2e}, root mean square "
            f"{row.root_mean_square:.1e} nats",
            flush=True,
        )


def _options() -> argparse.Namespace:
    parser = Parser(description="Measure how the formats of the weights change an autoregressive model.")
    parser.add_argument("pipeline", help="folder or name of an autoregressive pipeline")
    parser.add_argument("recordings", type=path_argument, nargs="+", help="audio files, or folders of them")
    parser.add_argument("--number", type=positive, default=20, help="maximum number of recordings")
    parser.add_argument("--samples", type=positive, default=16000, help="samples of a recording, from its beginning")
    parser.add_argument("--weights", choices=WEIGHTS[1:], nargs="+", default=list(WEIGHTS[1:]), help="formats")
    return parser.parse_args()


def compare(model: Any, recordings: Sequence[Tensor], formats: Sequence[str]) -> dict[str, Comparison]:
    """Compare formats of the weights on recordings.

    Args:
        model: a ``SashimiAutoregressive`` in evaluation mode.
        recordings: tokens, int64 (1, P) each.
        formats: names of the formats, see :data:`sashimi_diffusion.generation.WEIGHTS`.

    Returns:
        format -> result, float32 first.
    """
    models = {name: with_rounded_weights(model, name) for name in formats}
    nats, squares, count = dict.fromkeys(["float32", *formats], 0.0), dict.fromkeys(formats, 0.0), 0
    largest, largest_of_all = dict.fromkeys(formats, 0.0), dict.fromkeys(formats, 0.0)
    for tokens in recordings:
        exact = log_probabilities(model, tokens)  # (num_tokens, P)
        recorded = exact.gather(0, tokens)
        count += tokens.shape[1]
        nats["float32"] -= recorded.double().sum().item()
        for name, rounded in models.items():
            scores = log_probabilities(rounded, tokens)
            of_recorded = scores.gather(0, tokens)
            errors = (of_recorded - recorded).double()
            nats[name] -= of_recorded.double().sum().item()
            squares[name] += errors.square().sum().item()
            largest[name] = max(largest[name], errors.abs().max().item())
            largest_of_all[name] = max(largest_of_all[name], (scores - exact).abs().max().item())
    bits = {name: total / count / math.log(2) for name, total in nats.items()}
    results = {"float32": Comparison(bits["float32"], 0.0, 0.0, 0.0, 0.0)}
    for name in formats:
        difference, deviation = bits[name] / bits["float32"] - 1, math.sqrt(squares[name] / count)
        results[name] = Comparison(bits[name], difference, largest[name], largest_of_all[name], deviation)
    return results


@torch.no_grad()
def log_probabilities(model: Any, tokens: Tensor) -> Tensor:
    """Return the log-probability of every token at every sample, given the true samples before it, (num_tokens, P)."""
    state, scores = None, []
    with frozen(model):
        for inputs in model.inputs(tokens).split(_CHUNK, dim=1):
            logits, state = model.prefill(inputs, state)
            scores.append(logits.squeeze(0).log_softmax(dim=0))
    return torch.cat(scores, dim=1)


def with_rounded_weights(model: Any, weights: str) -> Any:
    """Return a copy of a model whose linear maps have the values that the compiled engine has in a format."""
    from sashimi_diffusion.generation.numba_engine.linear_maps import rounded

    rounded_model = copy.deepcopy(model)
    maps = [(name, module) for name, module in rounded_model.named_modules() if isinstance(module, Pointwise)]
    for name, module in maps:
        plain = Pointwise(module.in_channels, module.out_channels)  # without weight normalization
        values = module.weight.detach().squeeze(-1).numpy()
        plain.weight = nn.Parameter(torch.from_numpy(rounded(np.ascontiguousarray(values), weights)).unsqueeze(-1))
        plain.bias = module.bias
        parent, _, attribute = name.rpartition(".")
        setattr(rounded_model.get_submodule(parent), attribute, plain)
    return rounded_model.eval()


def _audio_files(path: Path) -> list[Path]:
    """Return the audio files of a folder and its folders, in the order of their names; or the file itself."""
    if not is_folder(path):
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS)
    if not files:
        raise UserError(f"{printable(path)} has no audio files: expected a folder of recordings")
    return files


if __name__ == "__main__":
    sys.exit(main())
