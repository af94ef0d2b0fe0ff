"""``sashimi-convert``: convert any official checkpoint, including the SC09 classifier."""

import argparse
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sashimi_diffusion.command_line import run
from sashimi_diffusion.commands.convert import Saveable, build_parser, convert, convert_pipeline, refuse_options
from sashimi_evaluation.classifiers.official_checkpoint import convert_classifier, is_classifier_checkpoint

# Options that apply to other checkpoints only.
_OTHER_OPTIONS = (
    "sample_rate",
    "length",
    "timesteps",
    "beta_start",
    "beta_end",
    "dilation_cycle",
    "step_on_residual",
    "stored_nodes",
    "quantization",
    "dt_transform",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run(lambda: convert(build_parser().parse_args(arguments), _convert_tensors))


def _convert_tensors(tensors: dict[str, Tensor], options: argparse.Namespace) -> tuple[Saveable, dict[str, str]]:
    """Convert any official checkpoint; return the object to save and the lines of the summary by title."""
    if not is_classifier_checkpoint(tensors):
        return convert_pipeline(tensors, options)
    refuse_options(options, _OTHER_OPTIONS, "a classifier")
    model = convert_classifier(tensors)
    config: Any = model.config
    return model, {
        "layout": f"ResNeXt-{config.depth} {config.cardinality}x{config.base_width}d, widen {config.widen_factor}",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "classes": f"{config.num_classes}",
    }


if __name__ == "__main__":
    raise SystemExit(main())
