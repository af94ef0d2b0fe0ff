"""The arguments of ``from_pretrained`` and ``from_pipe``: those of diffusers that cannot be honored are named."""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.suggestions import did_you_mean

HUB = ("revision", "cache_dir", "token", "force_download", "local_files_only")
"""Arguments about a repository on the Hugging Face hub."""

# Arguments of diffusers that may have one of these values, because that is what happens without them.
_USUAL: dict[str, tuple[Any, ...]] = {
    "use_safetensors": (True,),
    "trust_remote_code": (True, False),
    "low_cpu_mem_usage": (True,),
    "output_loading_info": (False,),
}
_PLACEMENT = "load the pipeline and call .to(device) or .enable_model_cpu_offload()"
_QUANTIZATION = "choose a smaller dtype with torch_dtype=torch.bfloat16"
_NO_CODE = "code of a folder is not run; a component of another package can be given as model= or scheduler="
_REFUSED = {
    "device_map": _PLACEMENT,
    "max_memory": _PLACEMENT,
    "offload_folder": _PLACEMENT,
    "offload_state_dict": _PLACEMENT,
    "quantization_config": _QUANTIZATION,
    "custom_pipeline": _NO_CODE,
    "custom_revision": _NO_CODE,
    "use_safetensors": "pickles are not read; leave it out",
    "low_cpu_mem_usage": "weights are always loaded without a second copy; leave it out",
    "output_loading_info": "missing and unexpected weights are errors; leave it out",
    **dict.fromkeys(("use_onnx", "use_flashpack", "from_flax"), "weights are safetensors; leave it out"),
    **dict.fromkeys(("proxies", "mirror", "provider", "sess_options", "provider_options"), "leave it out"),
    **dict.fromkeys(("disable_mmap", "load_connected_pipeline"), "leave it out"),
}


def check_options(function: str, options: Mapping[str, Any], own: Collection[str]) -> None:
    """Check keyword arguments that a function received beyond its own ones.

    Args:
        function: name of the function, for the error message.
        options: the keyword arguments. Known ones of diffusers may be None.
        own: names of all arguments that the function takes.

    Raises:
        UserError: an argument is unknown or cannot be honored; the message names it.
    """
    for name, value in options.items():
        if name in own or (name in _USUAL and any(value is usual for usual in _USUAL[name])):
            continue
        if name not in _REFUSED and name not in _USUAL:
            raise UserError(
                f"{function} has no argument {short_form(name)}{did_you_mean(name, own)} (it takes {', '.join(own)})"
            )
        if value is not None:
            raise UserError(f"{function} cannot use {name}={short_form(value)}: {_REFUSED[name]}")


def hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the keyword arguments that are about a repository on the hub."""
    return {name: value for name, value in options.items() if name in HUB}


def weights_dtype(torch_dtype: Any, dtype: Any) -> torch.dtype | None:
    """Return the dtype of the weights from the two arguments of ``from_pretrained``; None is float32.

    Both may be dicts with the keys "model" and "default", as in diffusers.

    Raises:
        UserError: both were given, or one is no floating-point dtype.
    """
    if torch_dtype is not None and dtype is not None and torch_dtype != dtype:
        raise UserError(f"torch_dtype is {short_form(torch_dtype)}, dtype is {short_form(dtype)}: give one of the two")
    name, given = ("torch_dtype", torch_dtype) if torch_dtype is not None else ("dtype", dtype)
    if isinstance(given, Mapping):
        for key in given.keys() - {"model", "scheduler", "default"}:
            raise UserError(f"{name} has the key {short_form(key)}: expected model or default")
        given = given.get("model", given.get("default"))
    if given is not None and not (isinstance(given, torch.dtype) and given.is_floating_point):
        raise UserError(f"{name} is {short_form(given)}: expected a dtype such as torch.bfloat16 or torch.float32")
    return given
