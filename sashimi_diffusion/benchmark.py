"""Seconds for one forward pass of a published denoiser, by kernel backend, measured side by side.

    python -m sashimi_diffusion.benchmark
    python -m sashimi_diffusion.benchmark --d-model 128 --threads 1

``kept`` is what sampling does in evaluation mode: the kernels are made at the first step and kept for the others.
"""

import argparse

import torch

from sashimi_diffusion.models import SashimiDenoiser
from sashimi_diffusion.ssm import StateSpace
from sashimi_kernels.benchmark import conditions, interleaved_medians


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--d-model", type=int, default=64, help="64 or 128 are published")
    parser.add_argument("--length", type=int, default=16000, help="samples, a multiple of 16")
    parser.add_argument("--batch-size", type=int, default=1, help="waveforms at once")
    parser.add_argument("--repeats", type=int, default=3, help="timed repeats of each row")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (all cores if not given)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = SashimiDenoiser(d_model=arguments.d_model).eval()
    sample = torch.randn(arguments.batch_size, 1, arguments.length)
    layers = [module for module in model.modules() if isinstance(module, StateSpace)]

    @torch.no_grad()
    def forward(backend: str, keep: bool) -> None:
        for layer in layers:
            layer.backend = backend
            if not keep:
                layer.forget()
        model(sample, 0)

    rows = {
        "reference, kernels made each time": lambda: forward("reference", keep=False),
        "torch, kernels made each time": lambda: forward("torch", keep=False),
        "torch, kernels kept": lambda: forward("torch", keep=True),
    }
    shape = f"d_model {arguments.d_model}, batch {arguments.batch_size}, {arguments.length} samples"
    print(f"one denoiser forward, {shape}; {conditions()}")
    seconds = interleaved_medians(rows, arguments.repeats)
    slowest = max(seconds.values())
    for name, value in seconds.items():
        print(f"{name:<36}{value:>9.3f} s{slowest / value:>8.1f}x")


if __name__ == "__main__":
    main()
