"""A learnable linear state space for every feature, computed as a convolution or as a recurrence."""

import torch
from torch import Tensor, nn

import sashimi_kernels as kernels
from sashimi_diffusion.ssm.cache import Cached
from sashimi_diffusion.ssm.convolution import (
    ConvolutionalSystem,
    Operator,
    convolution_operators,
    convolve,
    convolve_from_state,
    discretized,
    kernel,
    output_vectors,
)
from sashimi_diffusion.ssm.precision import without_autocast
from sashimi_diffusion.ssm.system import LinearSystem
from sashimi_kernels.shapes import require_sequence


class StateSpace(ConvolutionalSystem, Cached):
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
            d_model,
            n_state,
            parameterization,
            initialization,
            discretization,
            n_ssm,
            dt_min,
            dt_max,
            stable,
            bidirectional,
            reverse_shift,
            outputs_per_feature,
            max_length,
            bandlimit,
            backend,
        )

    def forward(
        self, u: Tensor, state: Tensor | None = None, rate: float = 1.0, operator: Operator | None = None
    ) -> Tensor:
        """Convolve a sequence with the kernels.

        Args:
            u: input, (B, H, L).
            state: initial state, (B, H, N); zero if not given.
            rate: factor of the step sizes. A model trained at one sampling rate applies to signals of a ``rate`` times
                lower sampling rate.
            operator: result of :func:`convolution_operators` for signals of this dtype and size; None computes it here.

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
            if state is not None and not self.uses_chunks(u.dtype, len(u), u.shape[-1], rate):
                return convolve_from_state(u, self, state, rate)
            operator = self._operator(u, rate) if operator is None else operator
            return convolve(u, operator, state, self.backend)

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
            if not self.uses_chunks(u.dtype, len(u), u.shape[-1], rate):
                return self.forward(u, state, rate), self._final_state(u, state, rate)
            operator = self._operator(u, rate)
            assert isinstance(operator, kernels.ChunkOperators)
            y, final = kernels.chunked_convolution(u, operator, state, self.backend)
            assert final is not None  # as the state space is causal
            return y, final

    def step(self, u: Tensor, state: Tensor, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """Compute one recurrence step.

        The state matrix is diagonal plus rank one, so the cost is O(N) per feature. The dense form is more expensive,
        and diagonalizing Ā is numerically unstable.

        Args:
            u: one sample, (B, H).
            state: state before the sample, complex (B, H, N).
            rate: see :meth:`forward`.

        Returns:
            output (B, outputs · H) and the next state.

        Raises:
            RuntimeError: the state space is bidirectional.
        """
        self._require_causal()
        system, c = self.cache.get(self, "step", rate, lambda: self.discrete_system(rate))
        with without_autocast(u.device):
            signal = u.to(self.D.dtype)
            if isinstance(system, kernels.DiscreteNPLR):
                y, x = kernels.nplr_step(signal, state, system, c, self.D, backend=self.backend)
            else:
                a, b = system
                y, x = kernels.diagonal_step(signal, state, a, b, c, self.D, backend=self.backend)
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
        return kernel([self], length, rate)

    def discrete_system(
        self, rate: float = 1.0
    ) -> tuple[kernels.DiscreteNPLR, Tensor] | tuple[tuple[Tensor, Tensor], Tensor]:
        """Return the constants of :meth:`step`: the discrete system, which is (Ā, B̄) if it is diagonal, and C.

        They are complex64, or complex128 after ``.double()``.
        """
        system = self.continuous_system(rate)
        c = output_vectors([self], system, rate)
        discrete = discretized(system, self)
        if isinstance(discrete, kernels.DiscreteNPLR):
            return kernels.DiscreteNPLR(*(x.to(c.dtype) for x in discrete)), c
        return (torch.exp(discrete.log_a).to(c.dtype), discrete.b.to(c.dtype)), c

    def extra_repr(self) -> str:
        return f"{self.d_model}, n_state={self.n_state}, {self.parameterization}, bidirectional={self.bidirectional}"

    def _operator(self, u: Tensor, rate: float) -> Operator:
        """Return the operator for signals like ``u``."""
        batch, _, length = u.shape
        key = (self.uses_chunks(u.dtype, batch, length, rate), length, rate, self.backend)
        return self.cache.get(
            self, "operator", key, lambda: convolution_operators([self], u.dtype, batch, [length], rate)[0]
        )

    def _final_state(self, u: Tensor, state: Tensor | None, rate: float) -> Tensor:
        """Return the state after the last sample of ``u``, complex (B, H, N)."""
        signal, system = u.to(self.D.dtype), self.continuous_system(rate)
        discrete = discretized(system, self)
        if isinstance(discrete, kernels.DiscreteDiagonal):
            return kernels.diagonal_state(discrete, signal, state, self.backend)
        return kernels.nplr_state(*system, signal, state, self.backend)

    def _require_causal(self) -> None:
        if self.bidirectional:
            raise RuntimeError("a bidirectional state space looks ahead: it has no recurrence and no initial state")


def state_space_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return dt, A and B of all state spaces in ``module``, which train with a low learning rate and no weight decay.

    C and D train like other weights (S4, arXiv 2111.00396, appendix D).
    """
    spaces = [part for part in module.modules() if isinstance(part, LinearSystem)]
    return [parameter for space in spaces for parameter in space.system_parameters()]
