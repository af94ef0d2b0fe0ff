"""The linear system of a state space: its step sizes, state matrix and input vector as parameters."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sashimi_diffusion.ssm.initialization import INITIALIZATIONS, initial_system
from sashimi_diffusion.ssm.precision import KeepFloat32

# Step sizes of useful kernels are inside of these bounds. Clamping to them prevents a diverging log_dt from turning the
# whole kernel into NaN.
DT_BOUNDS = (1e-6, 10.0)


class ContinuousSystem(NamedTuple):
    """x' = (diag(a) - p qᵀ) x + b u with step size dt: dt real (H, 1), the rest complex (H, N).

    p and q are zero for a diagonal system.
    """

    dt: Tensor
    a: Tensor
    p: Tensor
    q: Tensor
    b: Tensor


class LinearSystem(KeepFloat32):
    """Step sizes, state matrix and input vector of every feature.

    Parameters are real float32 (complex ones have a trailing axis of 2) and stay float32 under ``.to(dtype)``.

    Args:
        d_model: number of features H.
        n_state, parameterization, initialization, discretization, n_ssm, dt_min, dt_max, stable: see
            :class:`StateSpace`.

    Raises:
        ValueError: an unknown name, or a combination that is not supported.
    """

    def __init__(
        self,
        d_model: int,
        n_state: int,
        parameterization: str,
        initialization: str,
        discretization: str,
        n_ssm: int | None,
        dt_min: float,
        dt_max: float,
        stable: bool,
    ) -> None:
        super().__init__()
        n_ssm = d_model if n_ssm is None else n_ssm
        _validate(d_model, parameterization, discretization, n_ssm)
        self.d_model, self.n_state = d_model, n_state
        self.parameterization, self.discretization = parameterization, discretization
        initial = initial_system(initialization, n_state, parameterization)
        a, b, p = (x.expand(n_ssm, -1) for x in (initial.a, initial.b, initial.p))
        log_dt = torch.rand(d_model) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)
        low_rank = torch.view_as_real(p.contiguous())
        nplr = parameterization == "nplr"
        self.log_dt = _float32_parameter(log_dt)  # (H,)
        self.log_neg_real = _float32_parameter(torch.log(-a.real)) if stable else None  # (n_ssm, N)
        self.real = None if stable else _float32_parameter(a.real)  # (n_ssm, N)
        self.imag = _float32_parameter(a.imag)  # (n_ssm, N)
        self.B = _float32_parameter(torch.view_as_real(b.contiguous()))  # (n_ssm, N, 2)
        self.P = _float32_parameter(low_rank) if nplr else None  # (n_ssm, N, 2)
        self.Q = _float32_parameter(low_rank) if nplr and not stable else None  # (n_ssm, N, 2)

    def continuous_system(self, rate: float = 1.0) -> ContinuousSystem:
        """Return the system in double precision, see :func:`continuous_system`."""
        return continuous_system([self], rate)

    def system_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of dt, A and B."""
        parameters = (self.log_dt, self.log_neg_real, self.real, self.imag, self.B, self.P, self.Q)
        return [parameter for parameter in parameters if parameter is not None]


def continuous_system(systems: Sequence[LinearSystem], rate: float = 1.0) -> ContinuousSystem:
    """Return the systems in double precision, concatenated, with (A, B) repeated to all features.

    Args:
        systems: one system, or several with equal arguments except ``d_model``.
        rate: factor of the step sizes.

    Raises:
        ValueError: ``rate`` is not positive.
    """
    require_rate(rate)
    low, high = (math.log(bound) for bound in DT_BOUNDS)
    dt = rate * torch.exp(joined([system.log_dt for system in systems]).double().clamp(low, high)).unsqueeze(-1)

    def of_all_features(parameters: Sequence[Tensor]) -> Tensor:
        """Concatenate (n_ssm, ...) of each system, repeated to (H, ...); feature h uses copy h mod n_ssm."""
        return joined([_repeated(x, one.d_model) for x, one in zip(parameters, systems, strict=True)]).double()

    imag = of_all_features([system.imag for system in systems])
    a = torch.complex(_real_parts(systems, of_all_features), imag)  # (H, N)
    b = torch.view_as_complex(of_all_features([system.B for system in systems]))
    p = [system.P for system in systems if system.P is not None]
    if not p:
        return ContinuousSystem(dt, a, torch.zeros_like(a), torch.zeros_like(a), b)
    q = [system.Q for system in systems if system.Q is not None]
    p_all = torch.view_as_complex(of_all_features(p))
    q_all = torch.view_as_complex(of_all_features(q)) if q else p_all
    return ContinuousSystem(dt, a, p_all, q_all.conj(), b)


def joined(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Return the concatenation along ``axis``; a single tensor is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=axis)


def _repeated(x: Tensor, n_features: int) -> Tensor:
    copies = n_features // x.shape[0]
    return x if copies == 1 else x.repeat(copies, *[1] * (x.ndim - 1))


def _real_parts(systems: Sequence[LinearSystem], of_all_features: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
    """Return Re Λ, float64 (H, N)."""
    logarithms = [system.log_neg_real for system in systems if system.log_neg_real is not None]
    if logarithms:
        return -torch.exp(of_all_features(logarithms))
    return of_all_features([system.real for system in systems if system.real is not None])


def require_rate(rate: float) -> None:
    """Raise ValueError unless ``rate``, a factor of the step sizes, is positive."""
    if not rate > 0:
        raise ValueError(f"rate must be positive, got {rate}")


def _float32_parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.float().clone().to(torch.get_default_device()))


def _validate(d_model: int, parameterization: str, discretization: str, n_ssm: int) -> None:
    if parameterization not in INITIALIZATIONS:
        raise ValueError(f"unknown parameterization {parameterization!r}: expected 'nplr' or 'diag'")
    if discretization == "dss":
        raise ValueError(
            "discretization 'dss' is not supported, because it normalizes over the whole kernel and so has no "
            "recurrence: use 'zoh'"
        )
    if parameterization == "nplr" and discretization != "bilinear":
        raise ValueError(f"parameterization 'nplr' is discretized by 'bilinear' only, got {discretization!r}")
    if discretization not in ("zoh", "bilinear"):
        raise ValueError(f"unknown discretization {discretization!r}: expected 'zoh' or 'bilinear'")
    if n_ssm < 1 or d_model % n_ssm:
        raise ValueError(f"n_ssm must divide d_model = {d_model}, got {n_ssm}")
