"""The card of a run's pipeline, README.md: metadata for the Hugging Face hub, use, data, settings and figures."""

import ntpath
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from sashimi_diffusion.pipelines.hub import PLACEHOLDER
from sashimi_diffusion.pipelines.mel import mel_description
from sashimi_diffusion.terminal import printable
from sashimi_diffusion.training.config import RunConfig, to_tree
from sashimi_diffusion.training.yaml_files import write_yaml

REPLACED = "<!-- The training replaces this file until this line is removed. -->"
"""The last line of a card. A run keeps a card without it, because the user has edited that card."""

Figures = Mapping[str, tuple[int, float]]
"""The last value of each metric, with its step."""

_PRIVATE = ("path", "more_paths", "cache_dir", "download", "output_dir", "card", "tracking")
_NOT_FIGURES = ("gradient_norm", "learning_rate", "nonfinite_steps", "seconds_per_step", "seconds")
_MOST_NAMES = 20
_CITATION = """```bibtex
@inproceedings{goel2022sashimi,
  title = {It's Raw! Audio Generation with State-Space Models},
  author = {Goel, Karan and Gu, Albert and Donahue, Chris and R\\'e, Christopher},
  booktitle = {International Conference on Machine Learning},
  year = {2022},
  url = {https://arxiv.org/abs/2202.09729}
}
@inproceedings{kong2021diffwave,
  title = {DiffWave: A Versatile Diffusion Model for Audio Synthesis},
  author = {Kong, Zhifeng and Ping, Wei and Huang, Jiaji and Zhao, Kexin and Catanzaro, Bryan},
  booktitle = {International Conference on Learning Representations},
  year = {2021},
  url = {https://arxiv.org/abs/2009.09761}
}
```"""


@dataclass(frozen=True)
class Usage:
    """What a card says about every model of a kind.

    Args:
        what: the kind of model, a part of a sentence.
        network: the network that the pipeline has.
        library: name of the library on the hub.
        pipeline_tag: task of the model on the hub.
        tags: further tags.
        python: lines of Python that load the model and use it.
        command: the same with a command; "" if there is none.
    """

    what: str
    network: Any
    library: str
    pipeline_tag: str
    tags: tuple[str, ...]
    python: str
    command: str


def diffusion_usage(network: Any, steps: int | None = None) -> Usage:
    """Return what the card of a denoiser says.

    Args:
        network: the denoiser.
        steps: the sampling steps of a distilled one; None for another.
    """
    tags = ("audio-generation", "diffusion", "state-space-models", "sashimi-diffusion")
    load = f'from sashimi_diffusion import SashimiPipeline\n\npipe = SashimiPipeline.from_pretrained("{PLACEHOLDER}")\n'
    if network.config.get("mel_channels") is not None:
        shape = f"# mel: ({network.config.mel_channels} channels, frames), log mel spectrograms in a batch"
        made = "mel = pipe.mel(recording)  # recording: samples within [-1, 1] at the rate of the model"
        python = f"{load}{made}\naudio = pipe(mel=mel).audios  {shape}"
        command = f"sashimi-sample --pipeline {PLACEHOLDER} --resynthesize recordings"
        what = "a vocoder (diffusion) for mel spectrograms"
        return Usage(what, network, "diffusers", "text-to-speech", tags, python, command)
    conditions = "".join(
        f", conditioned on the {name}"
        for name, count in (("class", "num_classes"), ("speaker", "num_speakers"))
        if network.config.get(count) is not None
    )
    shape = f"(4, {network.config.in_channels}, {network.config.sample_size})"
    python = f"{load}audio = pipe(batch_size=4, num_inference_steps={steps or 50}).audios  # {shape}"
    command = f"sashimi-sample --pipeline {PLACEHOLDER} --num-samples 4 --steps {steps or 50}"
    distilled = "" if steps is None else f", distilled to {steps} sampling {'step' if steps == 1 else 'steps'}"
    what = f"a diffusion model of raw audio{conditions}{distilled}"
    return Usage(what, network, "diffusers", "text-to-audio", tags, python, command)


def autoregressive_usage(network: Any) -> Usage:
    """Return what the card of an autoregressive model says."""
    python = (
        "from sashimi_diffusion import SashimiAutoregressivePipeline\n\n"
        f'pipe = SashimiAutoregressivePipeline.from_pretrained("{PLACEHOLDER}")\n'
        f"audio = pipe(batch_size=4).audios  # (4, 1, {network.config.sample_size})"
    )
    tags = ("audio-generation", "autoregressive", "state-space-models", "sashimi-diffusion")
    command = f"sashimi-sample --pipeline {PLACEHOLDER} --num-samples 4"
    what = "an autoregressive model of raw audio"
    return Usage(what, network, "diffusers", "text-to-audio", tags, python, command)


def model_card(config: RunConfig, usage: Usage, description: str, step: int, figures: Figures) -> str:
    """Return the text of README.md.

    It contains no paths of this machine: of the folder of the recordings, it has the name.

    Args:
        config: configuration of the run.
        usage: the network, and texts of the kind of model.
        description: the numbers of examples.
        step: optimizer steps done.
        figures: the last metrics of the run.
    """
    card, network = config.card, usage.network
    title = card.title or printable(Path(config.output_dir).resolve().name)
    metadata = ModelCardData(
        language=list(card.language) or None,
        license=card.license or "unknown",
        library_name=usage.library,
        pipeline_tag=usage.pipeline_tag,
        tags=list(usage.tags),
        datasets=_data_sets(config) or None,
    )
    parameters = sum(parameter.numel() for parameter in network.parameters())
    text = f"{card.text.strip()}\n\n" if card.text else ""
    command = f"\n\n```bash\n{usage.command}\n```" if usage.command else ""
    return "\n\n".join(
        [
            f"---\n{metadata.to_yaml()}\n---",
            f"# {title}",
            f"{text}This is {usage.what}: {type(network).__name__} with {parameters:,} parameters, trained with "
            f"sashimi-diffusion for {step:,} optimizer steps. The weights are their average over the training.",
            f"## Use\n\n```python\n{usage.python}\n```{command}",
            f"## Training data\n\n{_data(config, network, description)}",
            f"## Figures\n\n{_figures(step, figures)}",
            f"## Settings\n\n```yaml\n{write_yaml(_public(to_tree(config))).strip()}\n```",
            f"## License\n\n{_license(card.license)}",
            f"## Citation\n\n{_CITATION}",
            f"{REPLACED}\n",
        ]
    )


def is_kept(card: Path) -> bool:
    """Return whether there is a card that the user has edited, see :data:`REPLACED`."""
    try:
        return REPLACED not in card.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _data_sets(config: RunConfig) -> list[str]:
    data = to_tree(config)["data"]
    known = ["google/speech_commands"] if data.get("kind") == "speech_commands" else []
    return [*config.card.datasets, *(name for name in known if name not in config.card.datasets)]


def _data(config: RunConfig, network: Any, description: str) -> str:
    """Return the table of the recordings."""
    rows = {"examples": description}
    data = to_tree(config)["data"]
    if isinstance(data.get("path"), str):
        paths = [data["path"], *data.get("more_paths", [])]
        rows["folder" if len(paths) == 1 else "folders"] = ", ".join(map(_last_part, paths))
    for name, unit in {"sample_rate": "Hz", "sample_size": "samples"}.items():
        if network.config.get(name) is not None:
            rows[name.replace("_", " ")] = f"{network.config[name]:,} {unit}"
    if network.config.get("mel_channels") is not None:
        rows["mel spectrogram"] = mel_description(network.config)
    for kind in ("class", "speaker"):
        names = network.config.get(f"{kind}_names")
        if names:
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            rows[f"{kind} names"] = ", ".join(map(str, names[:_MOST_NAMES])) + more
    return _table(rows)


def _figures(step: int, figures: Figures) -> str:
    rows = {"optimizer steps": f"{step:,}"}
    for name, (measured, value) in figures.items():
        if name not in _NOT_FIGURES and "/" not in name:  # points of curves
            rows[name.replace("_", " ")] = f"{value:.5g} (step {measured:,})"
    return _table(rows)


def _table(rows: Mapping[str, str]) -> str:
    cells = (f"| {name} | {text.replace('|', '&#124;')} |" for name, text in rows.items())
    return "\n".join(["| | |", "|---|---|", *(" ".join(cell.split()) for cell in cells)])


def _license(license: str | None) -> str:
    if license is not None:
        return f"The weights are under the license `{license}`."
    return (
        "Not decided yet. Set `card.license` in the config, or edit `license` above. It depends on the license of the "
        "recordings."
    )


def _public(tree: Any) -> Any:
    """Return a copy of a config without the paths of this machine."""
    if isinstance(tree, dict):
        return {key: _public(value) for key, value in tree.items() if key not in _PRIVATE}
    if isinstance(tree, list):
        return [_public(value) for value in tree]
    is_path = isinstance(tree, str) and (os.path.isabs(tree) or ntpath.isabs(tree) or tree.startswith("~"))
    return _last_part(tree) if is_path else tree


def _last_part(path: str) -> str:
    return ntpath.basename(path.rstrip("/\\"))
