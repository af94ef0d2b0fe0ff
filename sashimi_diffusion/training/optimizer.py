"""Optimizers with the parameter groups that state-space models need, and the learning rate over a run."""

import math
from typing import Any

import torch
from torch import nn

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.ssm import state_space_parameters
from sashimi_diffusion.training.config import OptimizerConfig
from sashimi_diffusion.training.counters import Counters
from sashimi_diffusion.training.muon import CombinedOptimizer, Muon

LARGEST_SSM_LR = 1e-3
_KINDS = ("weights", "vectors", "state space")


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict]:
    """Return groups that contain each trainable parameter once.

    State-space parameters (those of :func:`state_space_parameters`) have their own learning rate, at most 1e-3, and no
    weight decay, as in the S4 paper's experiments (arXiv 2111.00396, appendix D). Biases, norms and other vectors have
    no weight decay. All other parameters have weight decay. The entry ``peak_lr`` of a group is its peak learning rate.
    Modules with an attribute ``learning_rate_scale`` have groups of their own, with learning rates multiplied by it.
    """
    ssm_ids = {id(parameter) for parameter in state_space_parameters(model)}
    scales: dict[int, float] = {
        id(parameter): vars(module)["learning_rate_scale"]
        for module in model.modules()
        if "learning_rate_scale" in vars(module)
        for parameter in module.parameters()
    }
    groups: dict[tuple[str, float], list[nn.Parameter]] = {
        (kind, scale): [] for kind in _KINDS for scale in sorted({1.0, *scales.values()})
    }
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_vector = parameter.squeeze().ndim <= 1
            kind = "state space" if id(parameter) in ssm_ids else "vectors" if is_vector else "weights"
            groups[kind, scales.get(id(parameter), 1.0)].append(parameter)
    peaks = {"weights": config.lr, "vectors": config.lr, "state space": min(config.ssm_lr, LARGEST_SSM_LR)}
    return [
        {
            "params": parameters,
            "kind": kind,
            "peak_lr": peaks[kind] * scale,
            "weight_decay": config.weight_decay if kind == "weights" else 0.0,
        }
        for (kind, scale), parameters in groups.items()
        if parameters
    ]


def create_optimizer(
    model: nn.Module, config: OptimizerConfig, on_device: bool = False
) -> torch.optim.Optimizer | CombinedOptimizer:
    """Return the optimizer that ``config`` names; :func:`set_learning_rate` sets its learning rates at every step.

    With "muon", Muon updates the weight matrices except embedding tables, and AdamW updates everything else.

    Args:
        model: the network.
        config: the name and the settings.
        on_device: keep the learning rates in tensors on the device, so that a CUDA graph reads them; not for "sgd".

    Raises:
        UserError: "muon" for a network without weight matrices.
    """
    groups = parameter_groups(model, config)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in model.parameters())

    def create_adamw(adamw_groups: list[dict]) -> torch.optim.AdamW:
        return torch.optim.AdamW(adamw_groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), fused=fused)

    if config.name == "adamw":
        optimizer: torch.optim.AdamW | CombinedOptimizer = create_adamw(groups)
    else:
        matrices, others = _split_off_matrices(model, groups)
        muon = Muon(matrices, lr=config.lr, momentum=config.momentum)
        optimizer = CombinedOptimizer([muon, create_adamw(others)] if others else [muon])
    if on_device:
        for part in parts_of(optimizer):
            _keep_rates_on_device(part)
    return optimizer


def parts_of(optimizer: torch.optim.Optimizer | CombinedOptimizer) -> list[torch.optim.Optimizer]:
    """Return the optimizers of which ``optimizer`` consists."""
    return optimizer.parts if isinstance(optimizer, CombinedOptimizer) else [optimizer]


def _keep_rates_on_device(optimizer: torch.optim.Optimizer) -> None:
    """Move the learning rates of an optimizer into tensors; its saved state has numbers."""

    def with_numbers(_: torch.optim.Optimizer, state: dict) -> dict:
        for group in state["param_groups"]:
            group["lr"] = float(group["lr"])
        return state

    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], device=group["params"][0].device)
        if isinstance(optimizer, torch.optim.AdamW):
            group["capturable"] = True
    optimizer.register_state_dict_post_hook(with_numbers)


def load_optimizer(optimizer: torch.optim.Optimizer | CombinedOptimizer, stored: Any) -> None:
    """Load the result of ``state_dict``, except the settings, such as learning rates, which may have changed.

    Raises:
        UserError: ``stored`` is of another kind of optimizer or of another network, or it is no state of an optimizer.
    """
    require_same_kind(optimizer, stored)
    settings = [{key: group[key] for key in group if key != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(stored)
    except Exception as error:  # its class depends on what is in the place of the state
        kind = _kind_of(optimizer.state_dict())
        raise UserError(f"it is not the state of {kind} for this network ({' '.join(str(error).split())})") from error
    for group, setting in zip(optimizer.param_groups, settings, strict=True):
        group.update(setting)
    for part in parts_of(optimizer):
        _check_state(part)


def require_same_kind(optimizer: torch.optim.Optimizer | CombinedOptimizer, stored: Any, what: str = "it") -> None:
    """Check that a state is of the same kind of optimizer, or of none.

    Args:
        optimizer: the optimizer of the run.
        stored: a state, see :func:`load_optimizer`.
        what: what the state is, for the error message.

    Raises:
        UserError: it is of another kind; the message says how to resume.
    """
    kind, stored_kind = _kind_of(optimizer.state_dict()), _kind_of(stored)
    if stored_kind is not None and stored_kind != kind:
        raise UserError(
            f"{what} was written with optimizer.name={stored_kind}, but this command has optimizer.name={kind}: resume "
            f"with optimizer.name={stored_kind}, or start again in another output_dir"
        )


def _kind_of(state: Any) -> str | None:
    """Return the ``optimizer.name`` that has a state, or None if it has none."""
    if not isinstance(state, dict):
        return None
    if "parts" in state:
        return "muon"
    groups = state.get("param_groups")
    if not isinstance(groups, list) or not groups or not isinstance(groups[0], dict):
        return None
    return "adamw" if "betas" in groups[0] else "sgd"


def _check_state(optimizer: torch.optim.Optimizer) -> None:
    """Check that the state of every parameter has the tensors that the next step needs.

    Raises:
        UserError: one is missing, has another shape than the parameter, or is not finite.
    """
    names: tuple[str, ...] = ()  # SGD creates its state where there is none
    if isinstance(optimizer, torch.optim.AdamW):
        names = ("step", "exp_avg", "exp_avg_sq")
    elif isinstance(optimizer, Muon):
        names = ("average",)
    for parameter, state in optimizer.state.items():
        for name in {*names, *state}:
            value = state.get(name)
            # The momentum of SGD may be None. The step is a scalar.
            fits = value.shape in (parameter.shape, ()) if isinstance(value, torch.Tensor) else name not in names
            if not fits:
                raise UserError(f"{name} of a parameter of shape {tuple(parameter.shape)} is missing or does not fit")
    if not has_finite_state(optimizer):
        raise UserError("it has values that are not finite: the run had diverged")


def has_finite_state(optimizer: torch.optim.Optimizer | CombinedOptimizer) -> bool:
    """Return whether the averages of the gradients are finite. AdamW no longer changes a weight whose square is not."""
    states = [state for part in parts_of(optimizer) for state in part.state.values()]
    values = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
    return not values or bool(torch.stack([value.isfinite().all().to(values[0].device) for value in values]).all())


def _split_off_matrices(model: nn.Module, groups: list[dict]) -> tuple[list[dict], list[dict]]:
    """Return the group of weight matrices without embedding tables, and all other groups.

    Raises:
        UserError: there are no weight matrices.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices, others = [], []
    for group in groups:
        chosen = [p for p in group["params"] if group["kind"] == "weights" and id(p) not in tables]
        chosen_ids = {id(parameter) for parameter in chosen}
        rest = [p for p in group["params"] if id(p) not in chosen_ids]
        matrices += [{**group, "params": chosen}] if chosen else []
        others += [{**group, "params": rest}] if rest else []
    if not matrices:
        raise UserError("optimizer.name is muon, but this network has no weight matrices: use adamw")
    return matrices, others


def learning_rate_factor(step: int, steps: float, config: OptimizerConfig) -> float:
    """Return the factor of the peak learning rate at ``step`` (from 0) of ``steps``: linear warm-up, then the decay.

    It depends on the arguments only, so a checkpoint does not store a state of it.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.decay != "cosine":
        return 1.0
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def watch_plateau(counters: Counters, loss: float, config: OptimizerConfig) -> None:
    """Lower ``counters.plateau_factor`` if the validation loss has stopped falling, as ReduceLROnPlateau does.

    Args:
        counters: counters of the run, which are updated.
        loss: the new validation loss.
        config: gives the patience and the factor.
    """
    if math.isfinite(loss) and (counters.plateau_loss is None or loss < counters.plateau_loss * (1 - 1e-4)):
        counters.plateau_loss, counters.plateau_validations = loss, 0
        return
    counters.plateau_validations += 1
    if counters.plateau_validations > config.plateau_patience:
        counters.plateau_factor *= config.plateau_factor
        counters.plateau_validations = 0


def gradient_norm(model: nn.Module) -> torch.Tensor:
    """Return the 2-norm of the whole gradient, a scalar; it is not finite if an element is not."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def scale_gradients(model: nn.Module, factor: float) -> None:
    """Multiply the whole gradient by ``factor``."""
    torch._foreach_mul_([parameter.grad for parameter in model.parameters() if parameter.grad is not None], factor)


def set_learning_rate(optimizer: torch.optim.Optimizer | CombinedOptimizer, factor: float) -> float:
    """Set every group to ``factor`` times its peak learning rate, and return the learning rate of the first group."""
    for group in optimizer.param_groups:
        rate = factor * group["peak_lr"]
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    return factor * optimizer.param_groups[0]["peak_lr"]
