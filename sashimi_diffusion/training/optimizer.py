"""The optimiser, with the parameter groups state-space models need, and the learning rate over the run."""

import math

import torch
from torch import nn

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.ssm import state_space_parameters
from sashimi_diffusion.training.checkpoints import Counters
from sashimi_diffusion.training.config import OptimizerConfig
from sashimi_diffusion.training.muon import Muon, Together

LARGEST_SSM_LR = 1e-3


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict]:
    """Three groups of all trainable parameters, each exactly once.

    State-space parameters (those of :func:`state_space_parameters`) have their own learning rate of at most 1e-3 and no
    weight decay, as in the S4 paper's experiments (arXiv 2111.00396, appendix D); biases, norms and other vectors have
    no weight decay; the rest has both. Each group carries its peak rate as ``peak_lr``.
    """
    ssm, plain, decayed = state_space_parameters(model), [], []
    own_group = {id(parameter) for parameter in ssm}
    for parameter in model.parameters():
        if not parameter.requires_grad or id(parameter) in own_group:
            continue
        if parameter.squeeze().ndim <= 1:
            plain.append(parameter)
        else:
            decayed.append(parameter)
    groups = [
        {"params": decayed, "peak_lr": config.lr, "weight_decay": config.weight_decay},
        {"params": plain, "peak_lr": config.lr, "weight_decay": 0.0},
        {"params": ssm, "peak_lr": min(config.ssm_lr, LARGEST_SSM_LR), "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def create_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer | Together:
    """The optimiser that ``config`` names; :func:`set_learning_rate` sets its rates at every step.

    With "muon", weight matrices but lookup tables are Muon's, and everything else AdamW's.
    """
    groups = parameter_groups(model, config)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in model.parameters())
    adamw = {"lr": config.lr, "betas": tuple(config.betas), "fused": fused}
    if config.name == "adamw":
        return torch.optim.AdamW(groups, **adamw)
    matrices, others = _matrices_apart(model, groups)
    muon = Muon(matrices, lr=config.lr, momentum=config.momentum)
    return Together([muon, torch.optim.AdamW(others, **adamw)] if others else [muon])


def _matrices_apart(model: nn.Module, groups: list[dict]) -> tuple[list[dict], list[dict]]:
    """The group of weight matrices without lookup tables, and all other groups.

    Raises:
        UserError: there is no such matrix.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = [p for p in groups[0]["params"] if p.squeeze().ndim > 1 and id(p) not in tables]
    if not matrices:
        raise UserError("optimizer.name is muon, which this network has no weight matrices for: use adamw")
    rest = [p for p in groups[0]["params"] if id(p) in tables]
    others = [{**groups[0], "params": rest}] if rest else []
    return [{**groups[0], "params": matrices}], others + groups[1:]


def learning_rate_factor(step: int, steps: float, config: OptimizerConfig) -> float:
    """Share of the peak learning rate at ``step`` (from 0) of ``steps``: a linear warm-up, then constant or a cosine.

    A function of the step alone, so that a resumed run needs no state of it.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.decay != "cosine":
        return 1.0
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def watch_plateau(counters: Counters, loss: float, config: OptimizerConfig) -> None:
    """Lower ``counters.plateau_factor`` when validation losses stop falling, as PyTorch's ReduceLROnPlateau does."""
    if loss < counters.plateau_loss * (1 - 1e-4):
        counters.plateau_loss, counters.plateau_validations = loss, 0
        return
    counters.plateau_validations += 1
    if counters.plateau_validations > config.plateau_patience:
        counters.plateau_factor *= config.plateau_factor
        counters.plateau_validations = 0


def gradient_norm(model: nn.Module) -> torch.Tensor:
    """The 2-norm of the whole gradient, a scalar; not finite if any element is not."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def scale_gradients(model: nn.Module, factor: float) -> None:
    """Multiply the whole gradient by ``factor``."""
    torch._foreach_mul_([parameter.grad for parameter in model.parameters() if parameter.grad is not None], factor)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group to ``factor`` times its peak; returns the first group's rate, the one to log."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["peak_lr"]
    return optimizer.param_groups[0]["lr"]
