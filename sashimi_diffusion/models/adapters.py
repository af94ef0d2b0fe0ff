"""LoRA adapters of a network, with the methods of diffusers' ``PeftAdapterMixin``."""

import copy
import functools
import math
import numbers
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.adapter_files import MAX_RANK, StoredAdapter, read_adapter, write_adapter
from sashimi_diffusion.models.base import StoredModel
from sashimi_diffusion.ssm.cache import drop_values

if TYPE_CHECKING:
    from sashimi_diffusion.models.lora_layers import AdaptedMap


class LoraAdapters:
    """Mixin for a network whose linear maps can have LoRA adapters (arXiv 2106.09685).

    The methods have the names of diffusers' ``PeftAdapterMixin``. That class is not a base class because it imports
    peft and transformers, which takes seconds, also where no adapter is used.

    Example:
        >>> from peft import LoraConfig
        >>> model.add_adapter(LoraConfig(r=4))  # all linear maps of the network
        >>> model.save_lora_adapter("adapter")
    """

    peft_config: dict[str, Any]  # of each adapter, by name; peft sets it

    # of the network
    named_modules: Callable[..., Any]
    get_submodule: Callable[[str], Any]
    add_speakers: Callable[..., None]
    speaker_rows: Callable[..., Any]

    def add_adapter(self, adapter_config: Any, adapter_name: str = "default") -> None:
        """Add a new adapter, activate it, and freeze all other parameters.

        Args:
            adapter_config: ``peft.LoraConfig``. ``target_modules=None`` and "all-linear" choose all linear maps, except
                those in upsamplers of mel spectrograms. Dropout, DoRA, biases and other variants are not supported.
            adapter_name: name of the adapter.

        Raises:
            UserError: peft is not installed, the name exists, or the config asks for something else.
        """
        require_peft()
        from peft import LoraConfig, inject_adapter_in_model

        from sashimi_diffusion.models.lora_layers import ADAPTABLE, AdaptedMap

        if not isinstance(adapter_config, LoraConfig):
            raise UserError(f"adapter_config is {short_form(adapter_config)}: expected a peft.LoraConfig")
        if not isinstance(adapter_name, str) or not adapter_name or "." in adapter_name:
            raise UserError(f"adapter_name is {short_form(adapter_name)}: expected a text without dots")
        if adapter_name in self.adapter_names():
            raise UserError(f"the network already has an adapter {short_form(adapter_name)}: choose another name")
        config = copy.deepcopy(adapter_config)
        if config.target_modules in (None, "all-linear"):
            config.target_modules = self.linear_maps()
        _check_supported(config)
        self._check_targets(config)
        config._register_custom_module(dict.fromkeys(ADAPTABLE, AdaptedMap))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are intended
            inject_adapter_in_model(config, cast(nn.Module, self), adapter_name)
        self.set_adapter(adapter_name)

    def linear_maps(self) -> list[str]:
        """Return the names of the linear maps to which :meth:`add_adapter` adds adapters by default."""
        from sashimi_diffusion.models.lora_layers import ADAPTABLE, AdaptedMap

        inside, without = tuple(f"{name}." for name, _ in self._adapted()), self.parts_without_adapters()
        return [
            name
            for name, part in self.named_modules()
            if isinstance(part, (*ADAPTABLE, AdaptedMap)) and not name.startswith((*inside, *without))
        ]

    def parts_without_adapters(self) -> list[str]:
        """Return the names of parts that have no adapters by default."""
        return []

    def load_lora_adapter(
        self,
        pretrained_model_name_or_path: str | os.PathLike[str],
        adapter_name: str | None = None,
        weight_name: str | None = None,
        **hub: Any,
    ) -> None:
        """Load an adapter that :meth:`save_lora_adapter` has written, and activate it.

        Args:
            pretrained_model_name_or_path: a safetensors file, its folder, or the id of a repository on the hub.
            adapter_name: name of the adapter; None is "default", or the first free one of "default_1", "default_2", …
            weight_name: name of the file in the folder; default "pytorch_lora_weights.safetensors".
            **hub: options for a repository: ``revision``, ``cache_dir``, ``token``, ``subfolder`` and others of
                ``huggingface_hub.hf_hub_download``.

        Raises:
            UserError: peft is not installed, the file cannot be read, it is of another network, or the name exists.
        """
        require_peft()
        from peft import LoraConfig

        stored = read_adapter(pretrained_model_name_or_path, weight_name, **hub)
        name = adapter_name or self._free_name()
        self._check_fits(stored)
        self.add_adapter(LoraConfig(**stored.settings), name)
        for path, layer in self._adapted():
            if f"{path}.lora_A.weight" in stored.tensors:
                for matrix, tensor in layer.matrices(name).items():
                    tensor.data.copy_(stored.tensors[f"{path}.{matrix}.weight"])
        if stored.speakers:
            self.add_speakers(stored.speakers, stored.speaker_rows)

    def save_lora_adapter(
        self,
        save_directory: str | os.PathLike[str],
        adapter_name: str = "default",
        weight_name: str | None = None,
        speakers: Sequence[str] = (),
    ) -> None:
        """Write an adapter as a safetensors file into a folder.

        Args:
            save_directory: the folder; it is created if it does not exist.
            adapter_name: name of the adapter.
            weight_name: name of the file; default "pytorch_lora_weights.safetensors".
            speakers: names of speakers whose embeddings belong to the adapter; loading it adds them to the network.

        Raises:
            UserError: there is no such adapter or speaker, or the file cannot be written.
        """
        config = getattr(self, "peft_config", {}).get(adapter_name)
        if config is None:
            raise UserError(f"the network has no adapter {short_form(adapter_name)}: it has {self.adapter_names()}")
        tensors = {}
        for path, layer in self._adapted():
            if adapter_name in layer.lora_A:
                for matrix, tensor in layer.matrices(adapter_name).items():
                    tensors[f"{path}.{matrix}.weight"] = tensor
        rows = self.speaker_rows(speakers) if speakers else None
        write_adapter(Path(save_directory), weight_name, StoredAdapter.of(config, tensors, speakers, rows))

    def adapter_names(self) -> list[str]:
        """Return the names of all adapters."""
        return list(getattr(self, "peft_config", {}))

    def active_adapters(self) -> list[str]:
        """Return the names of the active adapters, also while they are disabled."""
        return next((list(layer.active_adapters) for _, layer in self._adapted()), [])

    def adapter_state(self) -> tuple[Any, ...]:
        """Return everything about the adapters on which the output depends, except their weights."""
        return tuple(
            (*layer.active_adapters, layer.disable_adapters, *layer.merged_adapters, *layer.scaling.items())
            for _, layer in self._adapted()
        )

    def set_adapter(self, adapter_name: str | list[str]) -> None:
        """Activate these adapters only, and make them trainable."""
        names = self._known([adapter_name] if isinstance(adapter_name, str) else adapter_name)
        for layer in self._changed_layers():
            layer.set_adapter(names)

    def set_adapters(self, adapter_names: str | list[str], weights: float | list[float] | None = None) -> None:
        """Activate these adapters only, each with a factor: one for all, one for each, or None for 1."""
        names = self._known([adapter_names] if isinstance(adapter_names, str) else adapter_names)
        factors = list(weights) if isinstance(weights, list | tuple) else [weights] * len(names)
        if len(factors) != len(names):
            raise UserError(f"{len(names)} adapters have {len(factors)} weights: give one for each")
        factors = [1.0 if factor is None else _finite("weights", factor) for factor in factors]
        for layer in self._changed_layers():
            layer.set_adapter(names)
            for name, factor in zip(names, factors, strict=True):
                layer.set_scale(name, factor)

    def disable_adapters(self) -> None:
        """Predict without adapters, also without fused ones."""
        for layer in self._changed_layers():
            layer.enable_adapters(False)

    def enable_adapters(self) -> None:
        """Predict with the active adapters again."""
        for layer in self._changed_layers():
            layer.enable_adapters(True)

    disable_lora, enable_lora = disable_adapters, enable_adapters

    def fuse_lora(
        self, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names: list[str] | None = None
    ) -> None:
        """Add adapters, the active ones by default, times ``lora_scale``, to the weights of the network."""
        names = None if adapter_names is None else self._known(adapter_names)
        _finite("lora_scale", lora_scale)
        for layer in self._changed_layers():
            if lora_scale != 1:
                layer.scale_layer(lora_scale)
            layer.merge(safe_fusing, names)

    def unfuse_lora(self) -> None:
        """Subtract fused adapters from the weights of the network."""
        for layer in self._changed_layers():
            layer.unmerge()

    def unload_lora(self) -> None:
        """Remove all adapters; the weights keep those that were fused."""
        for path, layer in self._changed_adapted():
            parent, _, name = path.rpartition(".")
            setattr(self.get_submodule(parent), name, layer.get_base_layer())
        if hasattr(self, "peft_config"):
            del self.peft_config

    def delete_adapters(self, adapter_names: str | list[str]) -> None:
        """Remove adapters by name."""
        names = self._known([adapter_names] if isinstance(adapter_names, str) else adapter_names)
        if set(names) == set(self.adapter_names()):
            self.unload_lora()
            return
        for layer in self._changed_layers():
            for name in names:
                layer.delete_adapter(name)
        for name in names:
            self.peft_config.pop(name)

    @functools.wraps(StoredModel.save_pretrained, assigned=())  # diffusers reads from the signature what it may pass
    def save_pretrained(self, *arguments: Any, **options: Any) -> None:
        """Save the network; see diffusers' ``ModelMixin``.

        Raises:
            UserError: the network has adapters.
        """
        if self.adapter_names():
            raise UserError(
                "a network with adapters is not saved: call fuse_lora() and unload_lora() before save_pretrained, or "
                "save the adapter alone with save_lora_adapter"
            )
        super().save_pretrained(*arguments, **options)  # type: ignore[misc]  # of ModelMixin

    def _adapted(self) -> Iterator[tuple[str, "AdaptedMap"]]:
        """Return the layers with adapters and their names."""
        if not hasattr(self, "peft_config"):
            return iter(())
        from sashimi_diffusion.models.lora_layers import AdaptedMap

        return ((name, part) for name, part in list(self.named_modules()) if isinstance(part, AdaptedMap))

    def _changed_adapted(self) -> list[tuple[str, "AdaptedMap"]]:
        """Return the layers with adapters, about to be changed: values that depend on their weights are dropped."""
        if not self.adapter_names():
            raise UserError("the network has no adapter: call add_adapter or load_lora_adapter first")
        drop_values(cast(nn.Module, self))
        return list(self._adapted())

    def _changed_layers(self) -> list["AdaptedMap"]:
        return [layer for _, layer in self._changed_adapted()]

    def _known(self, names: list[str]) -> list[str]:
        for name in names:
            if name not in self.adapter_names():
                raise UserError(f"the network has no adapter {short_form(name)}: it has {self.adapter_names()}")
        return names

    def _free_name(self) -> str:
        number, name = 0, "default"
        while name in self.adapter_names():
            number += 1
            name = f"default_{number}"
        return name

    def _check_targets(self, config: Any) -> None:
        """Check that adapters go to linear maps only."""
        from peft.tuners.tuners_utils import check_target_module_exists

        from sashimi_diffusion.models.lora_layers import ADAPTABLE, AdaptedMap

        inside = tuple(f"{name}." for name, _ in self._adapted())
        chosen = [
            (name, part)
            for name, part in self.named_modules()
            if name and not name.startswith(inside) and check_target_module_exists(config, name)
        ]
        wrong = [name for name, part in chosen if not isinstance(part, (*ADAPTABLE, AdaptedMap))]
        if wrong or not chosen:
            problem = f"{wrong[0]} is no linear map" if wrong else "they name no part of this network"
            raise UserError(f"target_modules of the adapter: {problem}; None chooses all linear maps")

    def _check_fits(self, stored: StoredAdapter) -> None:
        """Check that a stored adapter is of this network."""
        parts = dict(self.named_modules())
        for key, tensor in stored.tensors.items():
            path, matrix = key.removesuffix(".weight").rsplit(".", 1)
            weight = getattr(parts.get(path), "weight", None)
            expected = None if weight is None else (weight.shape[1] if matrix == "lora_A" else weight.shape[0])
            if expected != tensor.shape[1 if matrix == "lora_A" else 0]:
                raise UserError(f"{stored.name} is an adapter of another network: {key} does not fit this one")


def _check_supported(config: Any) -> None:
    """Check that a LoraConfig asks for nothing that :class:`AdaptedMap` does not compute."""
    from peft import LoraConfig

    default = LoraConfig()
    computed = ("r", "lora_alpha", "target_modules", "use_rslora", "init_lora_weights")
    about = ("base_model_name_or_path", "revision", "task_type", "peft_type", "auto_mapping", "inference_mode")
    for key, value in config.to_dict().items():
        if key not in (*computed, *about, "peft_version", "exclude_modules") and value != default.to_dict().get(key):
            raise UserError(f"{key}={short_form(value)} is not supported in adapters of this network: leave it out")
    if isinstance(config.r, bool) or not isinstance(config.r, int) or not 1 <= config.r <= MAX_RANK:
        raise UserError(f"r of the adapter is {short_form(config.r)}: expected a rank from 1 to {MAX_RANK:,}")
    _finite("lora_alpha", config.lora_alpha)
    if config.init_lora_weights not in (True, False, "gaussian"):
        raise UserError(f"init_lora_weights={short_form(config.init_lora_weights)} is not supported: leave it out")


def _finite(name: str, value: Any) -> float:
    """Return a factor; raise UserError if it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise UserError(f"{name} of adapters: {short_form(value)} is no finite number")
    return float(value)


def require_peft() -> None:
    """Check that peft can be imported.

    Raises:
        UserError: it cannot.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise UserError("LoRA adapters need peft: pip install peft") from error
