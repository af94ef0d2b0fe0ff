"""Fine-tuning: a run that starts from the weights of a pipeline, and may train LoRA adapters only."""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.data.mel import MelSettings
from sashimi_diffusion.data.recordings import Recordings
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import transfer
from sashimi_diffusion.models.adapters import require_peft
from sashimi_diffusion.models.conditioning import GrownLabelEmbedding
from sashimi_diffusion.pipelines.sashimi import SashimiPipeline
from sashimi_diffusion.schedulers.noise_paths import distilled_steps
from sashimi_diffusion.terminal import counted
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.initial_pipeline import initial_folder, require_equal

OF_THE_RECORDINGS = (
    *("data.sample_rate", "data.length", "model.class_conditional"),
    *(f"model.{name}" for name in transfer.OF_THE_RECORDINGS),
)
"""Settings in which a network may differ from the initial one with ``training.transfer``."""

ADAPTER = "adapter"
"""Folder of the adapter in the folder of the pipeline."""


def initial_network(config: DiffusionConfig, recordings: Recordings) -> Any:
    """Return the network of ``training.initial_pipeline``, with the speakers of the recordings that it does not know.

    With ``training.lora_rank``, it has adapters, and only they and the embeddings of new speakers are trained. With
    ``model.pooling=overlapping``, published pools become overlapping ones that compute the same.

    Raises:
        UserError: there is no such pipeline, it was distilled to few steps, a setting contradicts it, or the recordings
            do not fit it.
    """
    network, schedule = load_initial(config)
    _require_class(config, network)
    _check_settings(config, recordings.class_names is not None, network.config, schedule)
    if network.config.mel_channels is not None:  # pipelines of earlier versions have no settings
        network.register_to_config(mel_settings=asdict(config.data.mel.settings))
    new = _new_speakers(network.config, recordings.speaker_names)
    if new:
        network.add_speakers(new)
    if config.training.lora_rank is not None:
        add_adapter(network, config.training.lora_rank, len(new))
    return network


def with_initial_settings(config: DiffusionConfig, initial: Any) -> DiffusionConfig:
    """Return the config of a run with ``training.transfer``; what it does not say of the network is as in ``initial``.

    Raises:
        UserError: the network of the config is of another class than ``initial``.
    """
    _require_class(config, initial)
    names = inspect.signature(config.model.network_class).parameters.keys() - set(config.model.from_data)
    given = config.model.arguments
    model = config.model.model_copy(update={name: initial.config[name] for name in names - given.keys()})
    return config.model_copy(update={"model": model})


def _require_class(config: DiffusionConfig, network: Any) -> None:
    names = {network_class: name for name, network_class in config.model.networks.items()}
    require_equal({"model.name": (config.model.name, names.get(type(network), type(network).__name__))})


def transfer_initial_weights(config: DiffusionConfig, initial: Any, schedule: Any, network: Any) -> None:
    """Copy the weights of the network ``initial`` into a new network, see :func:`.transfer_weights`.

    Raises:
        UserError: a setting contradicts ``initial`` or its ``schedule``, or the networks differ in more than their
            labels and their sample rates.
    """
    _check_settings(config, network.config.num_classes is not None, initial.config, schedule)
    transfer.transfer_weights(initial, network)


def load_initial(config: DiffusionConfig) -> tuple[Any, Any]:
    """Return the network of ``training.initial_pipeline`` with the pools of the config, and its schedule.

    Raises:
        UserError: there is no such pipeline, or it was distilled to few steps.
    """
    pipeline = SashimiPipeline.from_pretrained(initial_folder(config.training.initial_pipeline, autoregressive=False))
    if (steps := distilled_steps(pipeline.scheduler.config)) is not None:
        raise UserError(
            f"training.initial_pipeline was distilled to {counted(steps, 'step')}, and its network denoises only in "
            "them: train or distill from its teacher instead"
        )
    network: Any = pipeline.model.train()
    if config.model.arguments.get("pooling") == "overlapping" and network.config.get("pooling") == "frames":
        network.use_overlapping_pools()
    return network, pipeline.scheduler.config


def add_adapter(network: Any, rank: int, new_speakers: int) -> None:
    """Add an adapter of this rank to all linear maps; only it and the last ``new_speakers`` speakers are trained."""
    require_peft()
    from peft import LoraConfig

    if new_speakers:
        network.speaker_embedding = GrownLabelEmbedding(network.speaker_embedding, new_speakers)
    network.add_adapter(LoraConfig(r=rank, lora_alpha=rank))
    if new_speakers:
        network.speaker_embedding.added.requires_grad_(True)


def use_labels_of(network: Any, recordings: Recordings) -> None:
    """Give the recordings the labels of the network: they have some of its classes and speakers.

    Raises:
        UserError: the recordings have a class that the network does not know.
    """
    for kind, names, indices in (("class", "class_names", "labels"), ("speaker", "speaker_names", "speakers")):
        own, known = getattr(recordings, names), network.config.get(names)
        if own is None or known is None:
            continue
        unknown = [name for name in own if name not in known]
        if unknown:
            raise UserError(
                f"the initial pipeline does not know the {kind} {short_form(unknown[0])}: it knows {', '.join(known)}"
            )
        positions = np.array([list(known).index(name) for name in own])
        setattr(recordings, indices, positions[getattr(recordings, indices)])
        setattr(recordings, names, list(known))


class TunedPipeline:
    """The pipeline of a network with adapters, in the form in which it is saved.

    Its folder is a complete pipeline, whose weights contain the adapter. The sub-folder ``adapter`` contains the
    adapter alone, with the embeddings of the new speakers.

    Args:
        pipeline: the pipeline of the network.
    """

    def __init__(self, pipeline: SashimiPipeline) -> None:
        self._network = pipeline.model
        self._pipeline = SashimiPipeline(fused(pipeline.model), pipeline.scheduler, pipeline.config.guidance_scale)

    def save_pretrained(self, folder: Path) -> None:
        """Write all files into ``folder``."""
        self._pipeline.save_pretrained(folder)
        embedding, speakers = self._network.speaker_embedding, self._network.config.speaker_names
        grown = isinstance(embedding, GrownLabelEmbedding)
        new = speakers[-len(embedding.added) :] if grown else []
        self._network.save_lora_adapter(folder / ADAPTER, speakers=new)


def fused(network: Any) -> Any:
    """Return a copy of a network whose weights contain its adapters."""
    merged = copy.deepcopy(network)
    merged.fuse_lora()
    merged.unload_lora()
    if isinstance(merged.speaker_embedding, GrownLabelEmbedding):
        merged.speaker_embedding = merged.speaker_embedding.plain()
    return merged


def trained_parameters(network: nn.Module) -> int:
    """Return the number of parameters that are trained."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def _new_speakers(known: Any, speaker_names: Sequence[str] | None) -> list[str]:
    if known.num_speakers is None and speaker_names is not None:
        raise UserError("the initial pipeline has no speakers: set data.speakers=null")
    if known.num_speakers is not None and speaker_names is None:
        raise UserError("the initial pipeline has speakers: name the field of the file names with data.speakers")
    if known.num_speakers is not None and known.speaker_names is None:
        raise UserError("the speakers of the initial pipeline have no names: fine-tune one with speaker_names")
    return [name for name in speaker_names or () if name not in (known.speaker_names or ())]


def _check_settings(config: DiffusionConfig, labeled: bool, network: Any, schedule: Any) -> None:
    """Check that no setting contradicts the initial pipeline; ``labeled`` recordings make a run class-conditional."""
    classes = labeled if config.model.class_conditional is None else config.model.class_conditional
    wanted: dict[str, tuple[object, object]] = {
        "model.class_conditional": (classes, network.num_classes is not None),
        "objective.name": (config.objective.name, network.get("objective", "diffusion")),
        "data.sample_rate": (config.data.sample_rate, network.sample_rate),
        "data.length": (config.data.length, network.sample_size),
    }
    for name, value in config.model.arguments.items():
        if value is not None or name not in config.model.measured:
            wanted[f"model.{name}"] = (value, network.get(name))
    # Flow matching and EDM have no betas, and their outputs have one meaning.
    used = {"num_train_timesteps"} if config.objective.name != "diffusion" else None
    for name, value in config.schedule.model_dump(include=used).items():
        wanted[f"schedule.{name}"] = (value, schedule.get(name, value))
    if network.get("mel_settings") is not None:
        known = asdict(MelSettings.of(network.mel_settings))
        wanted |= {f"data.mel.{name}": (value, known[name]) for name, value in config.data.mel.model_dump().items()}
    for name in OF_THE_RECORDINGS if config.training.transfer else ():
        wanted.pop(name, None)
    require_equal(wanted)
