"""The network of an autoregressive run: a new one, or that of a pipeline."""

from typing import Any

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines.autoregressive import SashimiAutoregressivePipeline
from sashimi_diffusion.training.autoregressive.config import AutoregressiveConfig
from sashimi_diffusion.training.initial_pipeline import initial_folder, require_equal


def create_network(config: AutoregressiveConfig) -> Any:
    """Return the network at the beginning of a run: new, or that of ``training.initial_pipeline``.

    Raises:
        UserError: invalid arguments of the network, a length that it does not support, or an error of
            :func:`initial_network`.
    """
    network = _new_network(config) if config.training.initial_pipeline is None else initial_network(config)
    length = config.data.length
    if length % network.length_multiple:
        raise UserError(f"data.length is {length}, but this network needs multiples of {network.length_multiple}")
    return network


def initial_network(config: AutoregressiveConfig) -> Any:
    """Return the network of ``training.initial_pipeline`` in training mode; ``data.length`` becomes its sample size.

    Raises:
        UserError: there is no such pipeline, or a setting contradicts it.
    """
    folder = initial_folder(config.training.initial_pipeline, autoregressive=True)
    network: Any = SashimiAutoregressivePipeline.from_pretrained(folder).model
    own_class = config.model.network_class
    if type(network) is not own_class:
        raise UserError(
            f"model.name is {config.model.name}, which is {own_class.__name__}, but the initial pipeline has "
            f"{type(network).__name__}"
        )
    wanted: dict[str, tuple[object, object]] = {
        "data.sample_rate": (config.data.sample_rate, network.config.sample_rate)
    }
    for name, value in config.model.arguments.items():
        wanted[f"model.{name}"] = (value, network.config.get(name))
    require_equal(wanted)
    network.register_to_config(sample_size=config.data.length)
    return network.train()


def _new_network(config: AutoregressiveConfig) -> Any:
    data = config.data
    try:
        return config.model.network_class(
            sample_rate=data.sample_rate, sample_size=data.length, **config.model.arguments
        )
    except ValueError as error:
        raise UserError(f"cannot build the network of `model`: {error}") from error
