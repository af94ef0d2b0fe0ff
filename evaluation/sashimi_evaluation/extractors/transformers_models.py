"""CLAP and EnCodec from folders of weights, through the package ``transformers``; nothing is downloaded."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import read_json
from sashimi_diffusion.terminal import first_line, listed, printable
from sashimi_evaluation.extractors.interface import NamedExtractor
from sashimi_evaluation.extractors.weights import fingerprint_of

VERSION = 1  # increase it whenever the same weights give other features
_CLAP_SECONDS = 10.0


class ClapAudio(nn.Module):
    """The audio side of CLAP (Wu et al. 2023, arXiv 2211.06687): embeddings of unit length.

    A waveform is cut into pieces of at most ten seconds, which is what the network takes; the mean of their embeddings
    is returned. A shorter piece is repeated until it fills ten seconds, as in training.

    Args:
        model: a ``ClapModel``.
        preprocessor: its ``ClapFeatureExtractor``.
    """

    def __init__(self, model: Any, preprocessor: Any) -> None:
        super().__init__()
        self.model: Any = model
        self._preprocessor = preprocessor

    def forward(self, waveform: Tensor) -> Tensor:
        """Map waveforms (B, L) at the rate of the preprocessor to embeddings (B, D)."""
        pieces = waveform.split(self._preprocessor.nb_max_samples, dim=1)
        return torch.stack([self._embedded(piece) for piece in pieces]).mean(dim=0)

    def _embedded(self, piece: Tensor) -> Tensor:
        rate = self._preprocessor.sampling_rate
        inputs = self._preprocessor(list(piece.cpu().numpy()), sampling_rate=rate, return_tensors="pt")
        # If no piece is too long, the preprocessor marks a random one as such.
        is_longer = torch.zeros_like(inputs["is_longer"])
        features = inputs["input_features"].to(piece.device, torch.float32)
        output = self.model.audio_model(input_features=features, is_longer=is_longer.to(piece.device))
        return F.normalize(self.model.audio_projection(output.pooler_output), dim=-1)


class EncodecLatents(nn.Module):
    """The mean over time of the latents of EnCodec (Défossez et al. 2022, arXiv 2210.13438) before quantization.

    Args:
        model: an ``EncodecModel``.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, waveform: Tensor) -> Tensor:
        """Map waveforms (B, L) at the rate of the model to features (B, D). A stereo model gets two equal channels."""
        config = self.model.config
        if config.normalize:
            waveform = waveform / (waveform.square().mean(dim=1, keepdim=True).sqrt() + 1e-8)
        return self.model.encoder(waveform[:, None].expand(-1, config.audio_channels, -1)).mean(dim=2)


def load_clap(folder: Path, device: str | torch.device = "cpu") -> NamedExtractor:
    """Load CLAP from a folder with ``config.json``, the weights and ``preprocessor_config.json``.

    Without excerpts it gets the first ten seconds of a file.

    Args:
        folder: a folder that ``save_pretrained`` of transformers writes, or a copy of a repository of the hub.
        device: device of the network.

    Raises:
        UserError: transformers is not installed, or the folder cannot be used.
    """
    transformers = _transformers("clap")
    _check_kind(folder, "clap")
    with _quiet_and_offline(transformers), _named_errors(folder, "CLAP"):
        preprocessor = transformers.ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
        model = _load(transformers.ClapModel, folder)
    network, description = ClapAudio(model, preprocessor), {"network": "clap", "version": VERSION}
    fingerprint = fingerprint_of(model.state_dict(), description | {"preprocessor": repr(preprocessor.to_dict())})
    return NamedExtractor(network, "clap", preprocessor.sampling_rate, _CLAP_SECONDS, fingerprint, device)


def load_encodec(folder: Path, device: str | torch.device = "cpu") -> NamedExtractor:
    """Load EnCodec from a folder with ``config.json`` and the weights.

    Without excerpts it gets the first second of a file.

    Args:
        folder: a folder that ``save_pretrained`` of transformers writes, or a copy of a repository of the hub.
        device: device of the network.

    Raises:
        UserError: transformers is not installed, or the folder cannot be used.
    """
    transformers = _transformers("encodec")
    _check_kind(folder, "encodec")
    with _quiet_and_offline(transformers), _named_errors(folder, "EnCodec"):
        model = _load(transformers.EncodecModel, folder)
    description = {"network": "encodec", "version": VERSION, "normalize": model.config.normalize}
    fingerprint = fingerprint_of(model.state_dict(), description)
    return NamedExtractor(EncodecLatents(model), "encodec", model.config.sampling_rate, 1.0, fingerprint, device)


def _transformers(name: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"--features {name} needs transformers: pip install transformers") from error
    return transformers


def _check_kind(folder: Path, kind: str) -> None:
    config = read_json(folder / "config.json", f"the config of {kind}")
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != kind:
        raise UserError(f"{printable(folder)} holds a model of the type {printable(found)[:80]}: expected {kind}")


@contextlib.contextmanager
def _quiet_and_offline(transformers: Any) -> Iterator[None]:
    """Keep the library off the network, and its reports off the terminal: what matters is checked here."""
    logging = transformers.utils.logging
    before, offline, bars = logging.get_verbosity(), constants.HF_HUB_OFFLINE, logging.is_progress_bar_enabled()
    constants.HF_HUB_OFFLINE = True
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _named_errors(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a damaged folder can raise almost every exception
        raise UserError(f"{printable(folder)} cannot be loaded as {what}: {first_line(error)}") from error


def _load(kind: Any, folder: Path) -> Any:
    """Load a model in float32; tensors that the files lack, which the library would draw at random, are refused."""
    model, report = kind.from_pretrained(folder, local_files_only=True, dtype=torch.float32, output_loading_info=True)
    problems = [f"missing {name}" for name in sorted(report["missing_keys"])]
    problems += [f"misshapen {printable(name)}" for name in report["mismatched_keys"]]
    if problems:
        raise UserError(f"the weights in {printable(folder)} do not fit its config: {listed(problems, 4)}")
    if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
        raise UserError(f"{printable(folder)} has weights that are NaN or infinite: use others")
    return model
