"""Files of LoRA adapters: safetensors with the layout of diffusers, and embeddings of the speakers that they add."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import write_file, writing
from sashimi_diffusion.paths import is_folder, require_file, status
from sashimi_diffusion.terminal import one_line, printable

FILE = "pytorch_lora_weights.safetensors"
_SETTINGS, _SPEAKERS = "lora_adapter_metadata", "sashimi_speakers"  # keys of the metadata; the first is diffusers'
_ROWS = "speaker_embedding.rows"
MAX_RANK = 4096


@dataclass
class StoredAdapter:
    """An adapter as it is in a file.

    Args:
        settings: arguments of ``peft.LoraConfig``.
        tensors: A (rank, in) and B (out, rank) by "NAME.lora_A.weight" and "NAME.lora_B.weight".
        speakers: names of the speakers that it adds.
        speaker_rows: their embeddings, (speakers, dim), or None without speakers.
        name: name of the file, for messages.
    """

    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    speakers: list[str] = field(default_factory=list)
    speaker_rows: Tensor | None = None
    name: str = ""

    @classmethod
    def of(
        cls, config: Any, tensors: Mapping[str, Tensor], speakers: Sequence[str], rows: Tensor | None
    ) -> "StoredAdapter":
        """Return the adapter of a ``peft.LoraConfig``."""
        targets = sorted({key.rsplit(".", 2)[0] for key in tensors})
        settings = {key: getattr(config, key) for key in ("r", "lora_alpha", "use_rslora")}
        settings |= {"target_modules": targets, "peft_type": "LORA"}
        return cls(settings, dict(tensors), list(speakers), rows)


def write_adapter(folder: Path, weight_name: str | None, adapter: StoredAdapter) -> None:
    """Write an adapter into a folder, which is created if it does not exist.

    Raises:
        UserError: it cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.tensors.items()}
    if adapter.speaker_rows is not None:
        tensors[_ROWS] = adapter.speaker_rows.detach().cpu().contiguous()
    metadata = {"format": "pt", _SETTINGS: json.dumps(adapter.settings), _SPEAKERS: json.dumps(adapter.speakers)}
    with writing(printable(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / (weight_name or FILE), safetensors.torch.save(tensors, metadata))


def read_adapter(source: str | os.PathLike[str], weight_name: str | None = None, **hub: Any) -> StoredAdapter:
    """Read an adapter.

    Args:
        source: a file, a folder, or the id of a repository.
        weight_name: name of the file in a folder or repository.
        **hub: options of ``huggingface_hub.hf_hub_download``.

    Raises:
        UserError: the file does not exist or is no adapter, or its numbers are not finite.
    """
    if not isinstance(source, str | os.PathLike):
        raise UserError(f"no adapter {short_form(source)}: expected a file, a folder, or a hub id like owner/name")
    path = _local_file(source, weight_name or FILE, hub)
    name = printable(path)
    require_file(path, "an adapter (safetensors)")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no dict
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {name} as a safetensors file: {one_line(error)}") from error
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise UserError(f"{name} has numbers that are NaN or infinite: use another adapter")
    rows = tensors.pop(_ROWS, None)
    try:
        settings = _checked_settings(json.loads(metadata[_SETTINGS]), tensors)
        speakers = json.loads(metadata.get(_SPEAKERS, "[]"))
        if not isinstance(speakers, list) or len(speakers) != (0 if rows is None else len(rows)):
            raise ValueError("one embedding for each speaker")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{name} is no adapter of this package: expected a file of save_lora_adapter") from error
    return StoredAdapter(settings, tensors, [str(speaker) for speaker in speakers], rows, name)


def _local_file(source: str | os.PathLike[str], file: str, hub: Mapping[str, Any]) -> Path:
    path = Path(source)
    if is_folder(path):
        return path / file
    if status(path) is not None or str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        return path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(str(source), file, **hub))
    except (OSError, ValueError) as error:
        raise UserError(
            f"there is no file {printable(path)}, and the hub did not return this adapter ({one_line(error)})"
        ) from error


def _checked_settings(given: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the settings of a file whose tensors they describe; raise ValueError or TypeError for others."""
    settings = {"r": given["r"], "lora_alpha": given["lora_alpha"], "use_rslora": bool(given.get("use_rslora"))}
    for key in ("r", "lora_alpha"):
        if isinstance(settings[key], bool) or not isinstance(settings[key], int) or not 0 < settings[key] <= MAX_RANK:
            raise ValueError(f"{key} out of its range")
    paths = sorted({key.rsplit(".", 2)[0] for key in tensors})
    expected = {f"{path}.{matrix}.weight" for path in paths for matrix in ("lora_A", "lora_B")}
    if not tensors or expected != set(tensors) or any(tensor.ndim != 2 for tensor in tensors.values()):
        raise ValueError("A and B for each map")
    for path in paths:
        if not tensors[f"{path}.lora_A.weight"].shape[0] == tensors[f"{path}.lora_B.weight"].shape[1] == settings["r"]:
            raise ValueError("A and B of the rank of the settings")
    return {**settings, "target_modules": paths}
