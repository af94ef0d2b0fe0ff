"""A learnable linear state space per feature, run as a convolution, as a recurrence, or as both."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sashimi_kernels as kernels
from sashimi_diffusion.ssm.cache import ParameterCache
from sashimi_diffusion.ssm.convolution import convolve
from sashimi_diffusion.ssm.initialization import initial_system
from sashimi_diffusion.ssm.precision import KeepFloat32, without_autocast

# Steps outside of these bounds neither occur in trained models nor leave a usable kernel; the clamp stops a runaway
# log_dt before it turns the whole kernel into NaN.
DT_BOUNDS = (1e-6, 10.0)

_SYSTEM = ("log_dt", "log_neg_real", "real", "imag", "B", "P", "Q")  # parameters of dt, A and B


class ContinuousSystem(NamedTuple):
    """x' = (diag(a) - p qᵀ) x + b u, stepped by dt: dt real (H, 1), the rest complex (H, N); no p, q if diagonal."""

    dt: Tensor
    a: Tensor
    p: Tensor | None
    q: Tensor | None
    b: Tensor


class StateSpace(KeepFloat32):
    """y = (K * u) + D u, with the kernel K of a state space of ``n_state`` states for every feature.

    "nplr" is S4's A = Λ - p p* with Re Λ = -exp(·), stable by construction (SaShiMi, arXiv 2202.09729, section 4.2);
    "diag" is S4D's diagonal A. Three ways to run it agree: :meth:`forward`, :meth:`step` and :meth:`prefill`.

    Parameters are real float32 (complex ones carry a trailing axis of 2) and stay so under ``.to(dtype)`` and autocast;
    everything is discretized in float64 and convolved in float32 (float64 once the module is ``.double()``).

    Args:
        d_model: number of features H.
        n_state: state size, even; half of the conjugate pairs is kept, N = n_state / 2.
        parameterization: "nplr" or "diag".
        initialization: "legs"; for "diag" also "lin" and "inv".
        discretization: "bilinear"; for "diag" also "zoh".
        bidirectional: add a kernel that looks ahead. Such a state space has no ``step`` and no ``prefill``.
        reverse_shift: the look-ahead kernel starts at the next sample (1) or at the present one (0).
        n_ssm: number of distinct (A, B), tiled over the features; None for one per feature.
        channels: outputs per feature, each with its own C and D.
        max_length: cut bidirectional kernels at so many samples, as the official code does; None never cuts.
        dt_min, dt_max: initial steps are log-uniform between them.
        stable: keep A as above. False learns Re Λ freely and, in A = Λ - p q*, q apart from p, as S4 did before
            SaShiMi: such a state space can learn to grow without bound, and is here to be compared with.
        backend: kernel backend, see :mod:`sashimi_kernels`.

    Raises:
        ValueError: a combination that does not exist.
    """

    def __init__(
        self,
        d_model: int,
        n_state: int = 64,
        parameterization: str = "nplr",
        initialization: str = "legs",
        discretization: str = "bilinear",
        bidirectional: bool = False,
        reverse_shift: int = 1,
        n_ssm: int | None = None,
        channels: int = 1,
        max_length: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        stable: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        n_ssm = d_model if n_ssm is None else n_ssm
        _validate(d_model, parameterization, discretization, reverse_shift, n_ssm)
        if max_length is not None and not bidirectional:
            raise ValueError("max_length would make the convolution differ from the recurrence: use it bidirectionally")
        self.d_model, self.n_state, self.channels = d_model, n_state, channels
        self.parameterization, self.discretization = parameterization, discretization
        self.bidirectional, self.reverse_shift, self.max_length = bidirectional, reverse_shift, max_length
        self.backend = backend

        initial = initial_system(initialization, n_state, parameterization)
        a, b, p = (x.expand(n_ssm, -1) for x in (initial.a, initial.b, initial.p))
        log_dt = torch.rand(d_model) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)
        c = torch.randn(channels * (1 + bidirectional), d_model, n_state // 2, dtype=torch.complex64)
        self.log_dt = _float32_parameter(log_dt)  # (H,)
        self.log_neg_real = _float32_parameter(torch.log(-a.real)) if stable else None  # (n_ssm, N)
        self.real = None if stable else _float32_parameter(a.real)  # (n_ssm, N)
        self.imag = _float32_parameter(a.imag)  # (n_ssm, N)
        self.B = _float32_parameter(torch.view_as_real(b.contiguous()))  # (n_ssm, N, 2)
        low_rank = torch.view_as_real(p.contiguous())
        self.P = _float32_parameter(low_rank) if parameterization == "nplr" else None
        self.Q = _float32_parameter(low_rank) if parameterization == "nplr" and not stable else None
        self.C = nn.Parameter(torch.view_as_real(c))  # (channels · directions, H, N, 2)
        self.D = nn.Parameter(torch.randn(channels, d_model))  # (channels, H)
        self._spectrum_cache, self._step_cache = ParameterCache(), ParameterCache()

    def forward(self, u: Tensor, state: Tensor | None = None) -> Tensor:
        """Convolve ``u`` (batch, H, L), after a ``state`` (batch, H, N) when given: (batch, channels · H, L)."""
        self._require_shape(u)
        if state is not None:
            self._require_causal()
        return self._convolve(u, state)

    def prefill(self, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """:meth:`forward`, and the state after the last sample, from which :meth:`step` or another prefill goes on.

        Returns:
            output (batch, channels · H, L) and state, complex (batch, H, N).
        """
        self._require_causal()
        self._require_shape(u)
        with without_autocast(u.device):
            if self._in_chunks(u):
                return self._convolve_in_chunks(u, state)
            signal, system = u.to(self.D.dtype), self.continuous_system()
            if self.parameterization == "diag":
                final = kernels.diagonal_state(self._diagonal(system), signal, state, self.backend)
            else:
                final = kernels.nplr_state(*system, signal, state, self.backend)
        return self._convolve(u, state), final

    def step(self, u: Tensor, state: Tensor, gelu: bool = False) -> tuple[Tensor, Tensor]:
        """One sample ``u`` (batch, H) from ``state`` (batch, H, N): output (batch, channels · H) and the next state.

        Diagonal plus rank one, so O(N) a feature. The dense form costs more; diagonalizing Ā is numerically useless.
        ``gelu`` applies GELU to the output in the same pass.
        """
        self._require_causal()
        system, c = self._step_cache.get(self, "step", self.discrete_system)
        with without_autocast(u.device):
            signal = u.to(self.D.dtype)
            if self.parameterization == "nplr":
                y, x = kernels.nplr_step(signal, state, system, c, self.D, gelu, self.backend)
            else:
                y, x = kernels.diagonal_step(signal, state, *system, c, self.D, gelu, self.backend)
        return y.flatten(1).to(u.dtype), x

    def initial_state(self, batch_size: int) -> Tensor:
        """The state at rest: zeros, complex (batch, H, N)."""
        dtype = torch.complex128 if self.D.dtype == torch.float64 else torch.complex64
        return torch.zeros(batch_size, self.d_model, self.n_state // 2, dtype=dtype, device=self.D.device)

    def kernel(self, length: int) -> Tensor:
        """The convolution kernels, real (channels · directions, H, length), forward directions first; without D."""
        made = length if self.max_length is None else min(length, self.max_length)
        kernel, _ = self._kernel_and_response(made, None)
        return F.pad(kernel, (0, length - made))

    def continuous_system(self) -> ContinuousSystem:
        """The parameters as a system in float64, (A, B) tiled over the features."""
        low, high = (math.log(bound) for bound in DT_BOUNDS)
        dt = torch.exp(self.log_dt.double().clamp(low, high)).unsqueeze(-1)  # (H, 1)
        real = -torch.exp(self.log_neg_real.double()) if self.real is None else self.real.double()
        a = self._tile(torch.complex(real, self.imag.double()))
        b = self._tile(torch.view_as_complex(self.B.double()))
        if self.P is None:
            return ContinuousSystem(dt, a, None, None, b)
        p = self._tile(torch.view_as_complex(self.P.double()))
        q = p if self.Q is None else self._tile(torch.view_as_complex(self.Q.double()))
        return ContinuousSystem(dt, a, p, q.conj(), b)

    def discrete_system(self) -> tuple[kernels.DiscreteNPLR | tuple[Tensor, Tensor], Tensor]:
        """What a step needs, in the working precision: the system, (Ā, B̄) if it is diagonal, and C."""
        system, c = self.continuous_system(), torch.view_as_complex(self.C)
        if self.parameterization == "nplr":
            discrete = kernels.discretize_nplr(*system)
            return kernels.DiscreteNPLR(*(x.to(c.dtype) for x in discrete)), c
        log_a, b = self._diagonal(system)
        return (torch.exp(log_a).to(c.dtype), b.to(c.dtype)), c

    def train(self, mode: bool = True) -> "StateSpace":
        """Switching modes frees what evaluation mode keeps."""
        self.forget()
        return super().train(mode)

    def forget(self) -> None:
        """Free what evaluation mode keeps; it is made again when it is needed."""
        self._spectrum_cache.clear()
        self._step_cache.clear()

    def extra_repr(self) -> str:
        return f"{self.d_model}, n_state={self.n_state}, {self.parameterization}, bidirectional={self.bidirectional}"

    def _convolve(self, u: Tensor, state: Tensor | None) -> Tensor:
        length = u.shape[-1]
        with without_autocast(u.device):
            if self._in_chunks(u):
                return self._convolve_in_chunks(u, state)[0]
            signal = u.to(self.D.dtype)
            if state is None:
                y = convolve(self, self._spectrum_cache, signal, lambda: self._lags(self.kernel(length)))
            else:
                kernel, response = self._kernel_and_response(length, state)
                y = kernels.long_convolution(signal.unsqueeze(1), self._lags(kernel)) + response
        return y.flatten(1, 2).to(u.dtype)  # from (batch, channels, H, L)

    def _in_chunks(self, u: Tensor) -> bool:
        """Triton convolves diagonal state spaces without an FFT; everything else goes through one."""
        if self.parameterization != "diag" or self.channels > 1 or self.max_length is not None:
            return False
        backend = kernels.backend_name(self.backend, u.device, "chunked_convolution", u.dtype, u.shape[-1])
        return backend == "triton"

    def _convolve_in_chunks(self, u: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        discrete, c = self._diagonal(self.continuous_system()), torch.view_as_complex(self.C)
        reverse = c[1] if self.bidirectional else None
        return kernels.chunked_convolution(
            u, discrete, c[0], self.D[0], reverse, self.reverse_shift, state, self.backend
        )

    def _lags(self, kernel: Tensor) -> Tensor:
        reverse = kernel[self.channels :] if self.bidirectional else None
        return kernels.kernel_lags(kernel[: self.channels], self.D, reverse, self.reverse_shift)

    def _kernel_and_response(self, length: int, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        system, c = self.continuous_system(), torch.view_as_complex(self.C)
        if self.parameterization == "nplr":
            return kernels.nplr_kernel(*system, c, length, state, self.backend)
        discrete = self._diagonal(system)
        kernel = kernels.diagonal_kernel(discrete.log_a, c * discrete.b.to(c.dtype), length, self.backend)
        if state is None:
            return kernel, None
        # y[t] = C Ā^(t+1) x: the kernel of every (batch, channel) pair with C Ā x in the place of C B̄.
        coefficients = c * (torch.exp(discrete.log_a).to(c.dtype) * state).unsqueeze(1)  # (batch, channels, H, N)
        response = kernels.diagonal_kernel(discrete.log_a, coefficients.flatten(0, 1), length, self.backend)
        return kernel, response.unflatten(0, coefficients.shape[:2])

    def _diagonal(self, system: ContinuousSystem) -> kernels.DiscreteDiagonal:
        return kernels.discretize_diagonal(system.dt, system.a, system.b, self.discretization)

    def _tile(self, x: Tensor) -> Tensor:
        """Feature h uses copy h mod n_ssm."""
        return x if x.shape[0] == self.d_model else x.repeat(self.d_model // x.shape[0], 1)

    def _require_shape(self, u: Tensor) -> None:
        if u.ndim != 3 or u.shape[1] != self.d_model:
            raise ValueError(f"expected an input of shape (batch, {self.d_model}, length), got {tuple(u.shape)}")

    def _require_causal(self) -> None:
        if self.bidirectional:
            raise RuntimeError("a bidirectional state space looks ahead: it has no recurrence and no initial state")


def state_space_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of all state spaces in ``module`` that want a low learning rate and no weight decay: dt, A and B.

    C and D train like any other weights (S4, arXiv 2111.00396, appendix D).
    """
    spaces = [part for part in module.modules() if isinstance(part, StateSpace)]
    parameters = [getattr(space, name) for space in spaces for name in _SYSTEM]
    return [parameter for parameter in parameters if parameter is not None]


def _float32_parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.float().clone())


def _validate(d_model: int, parameterization: str, discretization: str, reverse_shift: int, n_ssm: int) -> None:
    if parameterization not in ("nplr", "diag"):
        raise ValueError(f"unknown parameterization {parameterization!r}: expected 'nplr' or 'diag'")
    if parameterization == "nplr" and discretization != "bilinear":
        raise ValueError(f"parameterization 'nplr' is discretized by 'bilinear' only, got {discretization!r}")
    if discretization not in ("zoh", "bilinear"):
        raise ValueError(f"unknown discretization {discretization!r}: expected 'zoh' or 'bilinear'")
    if reverse_shift not in (0, 1):
        raise ValueError(f"reverse_shift must be 0 or 1, got {reverse_shift}")
    if n_ssm < 1 or d_model % n_ssm:
        raise ValueError(f"n_ssm must divide d_model = {d_model}, got {n_ssm}")
