"""A learnable linear state space for every feature, computed as a convolution or as a recurrence."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sashimi_kernels as kernels
from sashimi_diffusion.ssm.cache import ParameterCache
from sashimi_diffusion.ssm.precision import without_autocast
from sashimi_diffusion.ssm.system import ContinuousSystem, LinearSystem, require_rate
from sashimi_kernels.shapes import require_sequence


class StateSpace(LinearSystem):
    """y = K * u + D u, where * is a convolution and K the kernel of a state space with ``n_state`` states per feature.

    "nplr" is S4's A = Λ - p p* with Re Λ = -exp(·), which is always stable (SaShiMi, arXiv 2202.09729, section 4.2);
    "diag" is S4D's diagonal A. :meth:`forward`, :meth:`step` and :meth:`prefill` compute the same function.

    Parameters are real float32 (complex ones have a trailing axis of 2) and stay float32 under ``.to(dtype)`` and
    autocast. Systems are discretized in float64 and convolved in float32 (in float64 after ``.double()``).

    Args:
        d_model: number of features H.
        n_state: state size, even. Half of each conjugate pair is stored, N = n_state / 2.
        parameterization: "nplr" or "diag".
        initialization: "legs"; for "diag" also "lin" and "inv". See :func:`initial_system`.
        discretization: "bilinear"; for "diag" also "zoh".
        bidirectional: add an anti-causal kernel. A bidirectional state space has no ``step`` and no ``prefill``.
        reverse_shift: the anti-causal kernel starts at the next sample (1) or at the current one (0).
        n_ssm: number of distinct (A, B), repeated over the features; None for one per feature.
        outputs_per_feature: number of outputs of each feature, each with its own C and D.
        max_length: truncate the kernels of a bidirectional state space to this many samples, as the official code does;
            None for no limit.
        dt_min, dt_max: initial step sizes are log-uniform in this range.
        stable: constrain A = Λ - p q* as above: Re Λ < 0 and q = p. False trains Re Λ and q without these constraints,
            as S4 did before SaShiMi. Such a state space can become unstable; it exists for comparisons.
        bandlimit: for "diag", drop states with a frequency of at least half of this value (S4ND, arXiv 2210.06583). The
            frequency is abs(Im A) · dt / 2π, in cycles per sample at rate 1. None keeps all states.
        backend: kernel backend, see :mod:`sashimi_kernels`.

    Raises:
        ValueError: an unknown name, or a combination that is not supported.
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
        outputs_per_feature: int = 1,
        max_length: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        stable: bool = True,
        bandlimit: float | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            d_model, n_state, parameterization, initialization, discretization, n_ssm, dt_min, dt_max, stable
        )
        if reverse_shift not in (0, 1):
            raise ValueError(f"reverse_shift must be 0 or 1, got {reverse_shift}")
        if max_length is not None and not bidirectional:
            raise ValueError("max_length would make the convolution differ from the recurrence: set bidirectional")
        if bandlimit is not None and parameterization != "diag":
            raise ValueError(
                "bandlimit needs parameterization 'diag': the low-rank term of 'nplr' couples the states, so a single "
                "state has no frequency"
            )
        self.outputs_per_feature, self.bandlimit, self.backend = outputs_per_feature, bandlimit, backend
        self.bidirectional, self.reverse_shift, self.max_length = bidirectional, reverse_shift, max_length
        c = torch.randn(outputs_per_feature * (1 + bidirectional), d_model, n_state // 2, dtype=torch.complex64)
        self.C = nn.Parameter(torch.view_as_real(c))  # (outputs · directions, H, N, 2)
        self.D = nn.Parameter(torch.randn(outputs_per_feature, d_model))  # (outputs, H)
        self._spectrum_cache, self._step_cache = ParameterCache(), ParameterCache()

    def forward(self, u: Tensor, state: Tensor | None = None, rate: float = 1.0) -> Tensor:
        """Convolve a sequence with the kernels.

        Args:
            u: input, (B, H, L).
            state: initial state, (B, H, N); zero if not given.
            rate: factor of the step sizes. A model trained at one sampling rate applies to signals of a ``rate`` times
                lower sampling rate.

        Returns:
            (B, outputs · H, L).

        Raises:
            ValueError: the input has another shape or no samples, or ``rate`` is not positive.
            RuntimeError: an initial state was given to a bidirectional state space.
        """
        require_sequence(u, self.d_model)
        if state is not None:
            self._require_causal()
        with without_autocast(u.device):
            if self._uses_chunks(u):
                return self._convolve_in_chunks(u, state, rate)[0]
            return self._convolve(u, state, rate)

    def prefill(self, u: Tensor, state: Tensor | None = None, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return the output of :meth:`forward` and the state after the last sample.

        The state is the input of the next :meth:`step` or :meth:`prefill`.

        Returns:
            output (B, outputs · H, L) and state, complex (B, H, N).

        Raises:
            ValueError: as :meth:`forward`.
            RuntimeError: the state space is bidirectional.
        """
        self._require_causal()
        require_sequence(u, self.d_model)
        with without_autocast(u.device):
            if self._uses_chunks(u):
                y, final = self._convolve_in_chunks(u, state, rate)
                assert final is not None  # as the state space is causal
                return y, final
            return self._convolve(u, state, rate), self._final_state(u, state, rate)

    def step(self, u: Tensor, state: Tensor, gelu: bool = False, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """Compute one recurrence step.

        The state matrix is diagonal plus rank one, so the cost is O(N) per feature. The dense form is more expensive,
        and diagonalizing Ā is numerically unstable.

        Args:
            u: one sample, (B, H).
            state: state before the sample, complex (B, H, N).
            gelu: apply GELU to the output.
            rate: see :meth:`forward`.

        Returns:
            output (B, outputs · H) and the next state.

        Raises:
            RuntimeError: the state space is bidirectional.
        """
        self._require_causal()
        constants = self._step_cache.lookup(self, rate)
        if constants is None:
            constants = self.discrete_system(rate)
            self._step_cache.store(self, rate, constants)
        system, c = constants
        with without_autocast(u.device):
            signal = u.to(self.D.dtype)
            if isinstance(system, kernels.DiscreteNPLR):
                y, x = kernels.nplr_step(signal, state, system, c, self.D, gelu, self.backend)
            else:
                a, b = system
                y, x = kernels.diagonal_step(signal, state, a, b, c, self.D, gelu, self.backend)
        return y.flatten(1).to(u.dtype), x

    def initial_state(self, batch_size: int) -> Tensor:
        """Return the zero state, complex (B, H, N)."""
        dtype = torch.complex128 if self.D.dtype == torch.float64 else torch.complex64
        return torch.zeros(batch_size, self.d_model, self.n_state // 2, dtype=dtype, device=self.D.device)

    def kernel(self, length: int, rate: float = 1.0) -> Tensor:
        """Return the convolution kernels without D, real (outputs · directions, H, length), the causal ones first.

        Raises:
            ValueError: ``rate`` is not positive.
        """
        require_rate(rate)
        limit = length if self.max_length is None else max(1, round(self.max_length / rate))
        kernel, _ = self._kernel_and_response(min(length, limit), None, rate)
        return F.pad(kernel, (0, length - kernel.shape[-1]))

    def discrete_system(
        self, rate: float = 1.0
    ) -> tuple[kernels.DiscreteNPLR, Tensor] | tuple[tuple[Tensor, Tensor], Tensor]:
        """Return the constants of :meth:`step`: the discrete system, which is (Ā, B̄) if it is diagonal, and C.

        They are complex64, or complex128 after ``.double()``.
        """
        system = self.continuous_system(rate)
        c = self._output_vectors(system, rate)
        if self.parameterization == "nplr":
            return kernels.DiscreteNPLR(*(x.to(c.dtype) for x in kernels.discretize_nplr(*system))), c
        log_a, b = self._discretize_diagonal(system)
        return (torch.exp(log_a).to(c.dtype), b.to(c.dtype)), c

    def train(self, mode: bool = True) -> "StateSpace":
        """Set the mode and free the cached values of evaluation mode."""
        self.forget()
        return super().train(mode)

    def forget(self) -> None:
        """Free the cached values of evaluation mode; they are recomputed when needed."""
        self._spectrum_cache.clear()
        self._step_cache.clear()

    def extra_repr(self) -> str:
        return f"{self.d_model}, n_state={self.n_state}, {self.parameterization}, bidirectional={self.bidirectional}"

    def _convolve(self, u: Tensor, state: Tensor | None, rate: float) -> Tensor:
        """Convolve by FFT: (B, outputs · H, L)."""
        signal, length = u.to(self.D.dtype).unsqueeze(1), u.shape[-1]  # (B, 1, H, L)
        if state is None and not self.training and not torch.is_grad_enabled():
            y = kernels.spectrum_convolution(signal, self._spectrum(length, rate))  # (B, outputs, H, L)
        elif state is None:
            y = kernels.long_convolution(signal, self._lags(self.kernel(length, rate)))
        else:
            kernel, response = self._kernel_and_response(length, state, rate)
            y = kernels.long_convolution(signal, self._lags(kernel))
            y = y if response is None else y + response
        return y.flatten(1, 2).to(u.dtype)

    def _spectrum(self, length: int, rate: float) -> Tensor:
        """Return the spectrum of the kernels, cached while the parameters are unchanged."""
        spectrum = self._spectrum_cache.lookup(self, (length, rate))
        if spectrum is None:
            spectrum = kernels.lags_spectrum(self._lags(self.kernel(length, rate)))
            self._spectrum_cache.store(self, (length, rate), spectrum)
        return spectrum

    def _lags(self, kernel: Tensor) -> Tensor:
        """Return kernels and D arranged by :func:`sashimi_kernels.kernel_lags`, real (outputs, H, size)."""
        reverse = kernel[self.outputs_per_feature :] if self.bidirectional else None
        return kernels.kernel_lags(kernel[: self.outputs_per_feature], self.D, reverse, self.reverse_shift)

    def _kernel_and_response(self, length: int, state: Tensor | None, rate: float) -> tuple[Tensor, Tensor | None]:
        """Return the kernels (outputs · directions, H, L) and the response (B, outputs, H, L) to ``state``, if any."""
        system = self.continuous_system(rate)
        c = self._output_vectors(system, rate)
        if self.parameterization == "nplr":
            return kernels.nplr_kernel(*system, c, length, state, self.backend)
        discrete = self._discretize_diagonal(system)
        kernel = kernels.diagonal_kernel(discrete.log_a, c * discrete.b.to(c.dtype), length, self.backend)
        if state is None:
            return kernel, None
        # y[t] = C Ā^(t+1) x: the kernel of every (batch, output) pair with C Ā x in the place of C B̄.
        coefficients = c * (torch.exp(discrete.log_a).to(c.dtype) * state).unsqueeze(1)  # (B, outputs, H, N)
        response = kernels.diagonal_kernel(discrete.log_a, coefficients.flatten(0, 1), length, self.backend)
        return kernel, response.unflatten(0, coefficients.shape[:2])

    def _final_state(self, u: Tensor, state: Tensor | None, rate: float) -> Tensor:
        """Return the state after the last sample of ``u``, complex (B, H, N)."""
        signal, system = u.to(self.D.dtype), self.continuous_system(rate)
        if self.parameterization == "diag":
            return kernels.diagonal_state(self._discretize_diagonal(system), signal, state, self.backend)
        return kernels.nplr_state(*system, signal, state, self.backend)

    def _uses_chunks(self, u: Tensor) -> bool:
        """Return whether Triton convolves chunk by chunk, without an FFT. Only a diagonal state space allows it."""
        if self.parameterization != "diag" or self.outputs_per_feature > 1 or self.max_length is not None:
            return False
        backend = kernels.backend_name(self.backend, u.device, "chunked_convolution", u.dtype, u.shape[-1])
        return backend == "triton"

    def _convolve_in_chunks(self, u: Tensor, state: Tensor | None, rate: float) -> tuple[Tensor, Tensor | None]:
        """Convolve chunk by chunk: output (B, H, L) and the final state (B, H, N), None if bidirectional."""
        system = self.continuous_system(rate)
        discrete, c = self._discretize_diagonal(system), self._output_vectors(system, rate)
        reverse = c[1] if self.bidirectional else None
        operators = kernels.chunk_operators(discrete, c[0], self.D[0], reverse, self.reverse_shift)
        return kernels.chunked_convolution(u, operators, state, self.backend)

    def _output_vectors(self, system: ContinuousSystem, rate: float) -> Tensor:
        """Return C, complex (outputs · directions, H, N), zero for the states above the band limit."""
        c = torch.view_as_complex(self.C)
        if self.bandlimit is None:
            return c
        frequency = system.dt / rate * system.a.imag.abs() / (2 * math.pi)  # (H, N)
        return c * (frequency < self.bandlimit / 2)

    def _discretize_diagonal(self, system: ContinuousSystem) -> kernels.DiscreteDiagonal:
        return kernels.discretize_diagonal(system.dt, system.a, system.b, self.discretization)

    def _require_causal(self) -> None:
        if self.bidirectional:
            raise RuntimeError("a bidirectional state space looks ahead: it has no recurrence and no initial state")


def state_space_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return dt, A and B of all state spaces in ``module``, which train with a low learning rate and no weight decay.

    C and D train like other weights (S4, arXiv 2111.00396, appendix D).
    """
    spaces = [part for part in module.modules() if isinstance(part, LinearSystem)]
    return [parameter for space in spaces for parameter in space.system_parameters()]
