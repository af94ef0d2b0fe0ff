"""The held-out recordings of a config, for measurements of a pipeline."""

import argparse
from typing import Any

from sashimi_diffusion.command_line import Parser, positive
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines import SashimiPipeline
from sashimi_diffusion.training.config import load_config
from sashimi_diffusion.training.diffusion.batches import Batch, BatchSource
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.examples import spread_evenly
from sashimi_diffusion.training.packaged_configs import CONFIGS, config_file
from sashimi_diffusion.training.splits import open_split


def held_out_parser(description: str | None) -> Parser:
    """Return a parser with the options that :func:`held_out` reads."""
    parser = Parser(description=description)
    parser.add_argument("--pipeline", default="sashimi-digits", help="a folder or the name of a bundled pipeline")
    parser.add_argument("--config", default="digits-small", help="config of the run, which says what is held out")
    parser.add_argument("--clips", type=positive, default=30, help="number of held-out recordings (default: 30)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the config, such as data.path")
    return parser


def held_out(options: argparse.Namespace) -> tuple[SashimiPipeline, Batch]:
    """Return the pipeline, and held-out recordings as its denoiser sees them, with their noise and labels.

    Raises:
        UserError: pipeline, config or recordings cannot be used, or they have different labels.
    """
    config = load_config(DiffusionConfig, config_file(options.config, CONFIGS / "diffusion"), options.overrides)
    pipe = SashimiPipeline.from_pretrained(options.pipeline)
    model: Any = pipe.model
    data = config.data
    recordings = open_split(data, "validation", data.length, False, data.speakers, True, config.channels)
    recordings.normalize_rms = data.normalize_rms
    for names, own in (("class_names", recordings.class_names), ("speaker_names", recordings.speaker_names)):
        if model.config.get(names) is not None and list(model.config.get(names)) != own:
            raise UserError(f"the {names} of the pipeline are {model.config.get(names)}, those of the recordings {own}")
    source = BatchSource(
        recordings, config, model.normalize, model.config.num_classes, num_speakers=model.config.num_speakers
    )
    return pipe, source.validation_batch(spread_evenly(len(recordings), options.clips))
