"""Tests of the S4 layer against float64 results of the official code (its float32 results are less accurate)."""

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sashimi_diffusion.ssm import S4Layer
from sashimi_diffusion.ssm.initialization import initial_system
from sashimi_kernels import discretize_nplr, nplr_kernel
from sashimi_kernels.discretization import real_matrix, real_output
from sashimi_kernels.reference.generation import truncated_output

NPLR = [
    *(f"nplr_N16_L{length}_{way}" for length in (64, 1000, 16000) for way in ("uni", "bi")),
    *(f"nplr_N64_L{rest}" for rest in ("64_uni", "64_bi", "1000_uni", "16000_uni", "16000_bi")),
    "nplr_N64_L1000_nssm1_softplus",
    "nplr_N64_L1000_nssm2_exp",
    "nplr_N16_L256_fourier",
    "nplr_N16_L256_hippo_combo",
    "nplr_N16_L256_channels2",
]
DIAGONAL = [
    *(f"diag_{method}_N{n}_L{length}_lin" for method in ("zoh", "bilinear") for n, length in ((16, 1000), (64, 1000))),
    *(f"diag_{method}_N64_L{rest}" for method in ("zoh", "bilinear") for rest in ("16000_lin", "64_inv")),
    "diag_bilinear_N64_L1000_legs_bi",
    *(f"diag_zoh_N16_L64_real_{transform}" for transform in ("none", "relu", "sigmoid", "softplus")),
    "diag_zoh_N16_L64_bandlimit",
]
# The Triton interpreter is slow, so it runs one NPLR kernel of each kind.
INTERPRETED = [
    *("nplr_N16_L64_bi", "nplr_N16_L1000_uni", "nplr_N64_L64_uni", "nplr_N64_L1000_uni", "nplr_N16_L256_channels2"),
    *(name for name in DIAGONAL if "_L16000" not in name),
]
# The reference is accurate only in float64; Triton runs only in float32.
DTYPES = {"torch": (torch.float32, torch.float64), "reference": (torch.float64,), "triton": (torch.float32,)}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
REAL_TRANSFORMS = {
    "exp": torch.exp,
    "none": lambda x: x,
    "relu": lambda x: F.relu(x) + 1e-4,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def load(golden, name: str) -> tuple[dict, dict[str, Tensor]]:
    return golden.info(f"a_s4/{name}"), golden.tensors(f"a_s4/{name}")


def layer_from_official(config: dict, tensors: dict[str, Tensor], dtype: torch.dtype, backend: str = "auto") -> S4Layer:
    """Return a layer with the parameters of an official (V4) layer that contains C itself, not C (I - Ā^L)."""
    w = {key[len("sd.") :]: value.double() for key, value in tensors.items() if key.startswith("sd.")}
    kernel = {key[len("layer.kernel.") :]: value for key, value in w.items() if key.startswith("layer.kernel.")}
    bidirectional = config.get("bidirectional", False)
    diagonal = "P" not in kernel
    layer = S4Layer(
        config["d_model"],
        n_state=2 * kernel["B"].shape[-2],
        parameterization="diag" if diagonal else "nplr",
        discretization=config.get("disc", "zoh") if diagonal else "bilinear",
        bidirectional=bidirectional,
        n_ssm=kernel["B"].shape[1],
        outputs_per_feature=config.get("channels", 1),
        bandlimit=config.get("bandlimit"),
        backend=backend,
    ).to(dtype)
    dt = kernel["inv_dt"].squeeze(-1)
    dt = F.softplus(dt) if config.get("dt_transform") == "softplus" else dt.exp()
    real = REAL_TRANSFORMS[config.get("real_transform", "exp")](kernel["A_real"])
    ssm = layer.ssm
    values = {
        ssm.log_dt: dt.log(),
        ssm.log_neg_real: real.log(),
        ssm.imag: -kernel["A_imag"],
        ssm.B: kernel["B"][0],
        ssm.C: kernel["C"],
        ssm.D: w["layer.D"],
        layer.output_linear.weight: w["output_linear.0.weight"].unsqueeze(-1),
        layer.output_linear.bias: w["output_linear.0.bias"],
    }
    if not diagonal:
        values[ssm.P] = kernel["P"][0]
    with torch.no_grad():
        for parameter, value in values.items():
            parameter.copy_(value)
    return layer.eval()


def cases(names: list[str], interpreted: list[str]) -> pytest.MarkDecorator:
    """Parametrize ``name``, ``dtype`` and ``backend``; Triton runs only on the names in ``interpreted``."""
    by_backend = {"torch": names, "reference": names, "triton": interpreted if find_spec("triton") else []}
    parameters = [
        pytest.param(name, dtype, backend, id=f"{name}-{dtype}-{backend}".replace("torch.", ""))
        for backend, chosen in by_backend.items()
        for dtype in DTYPES[backend]
        for name in chosen
    ]
    return pytest.mark.parametrize(("name", "dtype", "backend"), parameters)


@cases(NPLR + DIAGONAL, INTERPRETED)
def test_kernel_and_output_match(golden, name: str, dtype: torch.dtype, backend: str) -> None:
    info, tensors = load(golden, name)
    layer = layer_from_official(info["config"], tensors, dtype, backend)
    with torch.no_grad():
        kernel = layer.ssm.kernel(tensors["in.u"].shape[-1])
        output = layer(tensors["in.u"].to(dtype))
    assert kernel.dtype == output.dtype == dtype
    assert relative_error(kernel, tensors["out64.K"]) < TOLERANCE[dtype]
    if "out64.y" in tensors:  # the longest files contain only the kernel in float64
        assert relative_error(output, tensors["out64.y"]) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
def test_one_set_of_parameters_gives_every_length(golden, dtype: torch.dtype) -> None:
    info, tensors = load(golden, "nplr_doubling_and_rate")
    layer = layer_from_official(info["config"], tensors, dtype)
    for call in "123":
        with torch.no_grad():
            output = layer(tensors[f"in.u{call}"].to(dtype))
        assert relative_error(output, tensors[f"out64.y{call}"]) < TOLERANCE[dtype]


@pytest.mark.parametrize("rate", [0.5, 2.0])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
def test_kernels_at_another_rate_match(golden, dtype: torch.dtype, rate: float) -> None:
    """The official kernel is approximate, also in float64, because it uses C (I - Ā^L) of rate 1."""
    info, tensors = load(golden, "nplr_doubling_and_rate")
    layer = layer_from_official(info["config"], tensors, dtype)
    with torch.no_grad():
        assert relative_error(layer.ssm.kernel(400, rate), tensors[f"out64.K_L400_rate{rate}"]) < 1e-5


@cases([f"nplr_N{n}_L64_{way}" for n in (16, 64) for way in ("uni", "bi")], ["nplr_N16_L64_bi", "nplr_N64_L64_uni"])
def test_kernel_gradients_match(golden, name: str, dtype: torch.dtype, backend: str) -> None:
    """The official parameter is C~ = C (I - Ā^L), so C is computed from C~, A and dt before differentiation."""
    info, tensors = load(golden, name)
    ssm = layer_from_official(info["config"], tensors, dtype).ssm
    dt, a, p, _, b = ssm.continuous_system()
    c = torch.view_as_complex(ssm.C.detach().double())
    c_truncated = torch.view_as_real(truncated_output(dt, a, p, p.conj(), b, c, 64).detach()).requires_grad_()
    system = discretize_nplr(dt, a, p, p.conj(), b)
    matrix = real_matrix(system)  # (H, 2N, 2N)
    identity = torch.eye(matrix.shape[-1], dtype=torch.float64)
    rows = real_output(torch.view_as_complex(c_truncated)).unsqueeze(-2)  # (M, H, 1, 2N)
    rows = torch.linalg.solve(identity - torch.linalg.matrix_power(matrix, 64), rows, left=False).squeeze(-2)
    real, imag = rows.chunk(2, dim=-1)
    c = torch.complex(real / 2, -imag / 2).to(torch.view_as_complex(ssm.C).dtype)
    kernel, _ = nplr_kernel(dt, a, p, p.conj(), b, c, 64, backend=backend)
    (kernel * tensors["in.wK"].to(dtype)).sum().backward()
    gradients = {
        "inv_dt": ssm.log_dt.grad.unsqueeze(-1),
        "A_real": ssm.log_neg_real.grad,
        "A_imag": -ssm.imag.grad,
        "B": ssm.B.grad.unsqueeze(0),
        "P": ssm.P.grad.unsqueeze(0),
        "C": c_truncated.grad,
    }
    for key, gradient in gradients.items():
        assert relative_error(gradient, tensors[f"gradK64.{key}"]) < TOLERANCE[dtype], key


@pytest.mark.parametrize("name", ["nplr_N16_L1000_uni", "nplr_N64_L1000_uni", "nplr_N64_L1000_nssm1_softplus"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
def test_nplr_steps_match(golden, name: str, dtype: torch.dtype) -> None:
    info, tensors = load(golden, name)
    layer = layer_from_official(info["config"], tensors, dtype)
    expected = tensors["out64.y_step_linear"]
    outputs, state = run_steps(layer, tensors["in.u"][..., : expected.shape[-1]].to(dtype))
    assert relative_error(outputs, expected) < TOLERANCE[dtype]
    expected = torch.view_as_complex(tensors["out64.state_step_linear"])
    assert relative_error(torch.view_as_real(state), torch.view_as_real(expected)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
def test_diagonal_steps_match(golden, dtype: torch.dtype) -> None:
    info, tensors = load(golden, "diag_zoh_N64_L1000_lin")
    layer = layer_from_official(info["config"], tensors, dtype)
    expected = tensors["out64.y_step"]
    outputs, _ = run_steps(layer, tensors["in.u"][..., : expected.shape[-1]].to(dtype))
    assert relative_error(outputs, expected) < TOLERANCE[dtype]


@cases(["state_forward_nplr", "state_forward_diag"], ["state_forward_diag"])
def test_forward_from_a_state_matches(golden, name: str, dtype: torch.dtype, backend: str) -> None:
    info, tensors = load(golden, name)
    layer = layer_from_official(info["config"], tensors, dtype, backend)
    state = torch.view_as_complex(tensors["in.state"].to(dtype))
    with torch.no_grad():
        output, final = layer.prefill(tensors["in.u"].to(dtype), state)
    assert relative_error(output, tensors["out64.y"]) < TOLERANCE[dtype]
    assert relative_error(torch.view_as_real(final), tensors["out64.next_state"]) < TOLERANCE[dtype]


def test_minimal_s4d_matches(golden) -> None:
    info, tensors = load(golden, "s4d_minimal_N16_L200")
    w = {key[len("sd.") :]: value for key, value in tensors.items() if key.startswith("sd.")}
    layer = S4Layer(info["config"]["d_model"], n_state=16, parameterization="diag", discretization="zoh").eval()
    ssm = layer.ssm
    with torch.no_grad():
        ssm.log_dt.copy_(w["kernel.log_dt"])
        ssm.log_neg_real.copy_(w["kernel.log_A_real"])
        ssm.imag.copy_(w["kernel.A_imag"])
        ssm.B.copy_(torch.tensor([1.0, 0.0]).expand_as(ssm.B))
        ssm.C.copy_(w["kernel.C"])
        ssm.D.copy_(w["D"])
        layer.output_linear.weight.copy_(w["output_linear.0.weight"])
        layer.output_linear.bias.copy_(w["output_linear.0.bias"])
        assert relative_error(ssm.kernel(200)[0], tensors["out.K"]) < TOLERANCE[torch.float32]
        assert relative_error(layer(tensors["in.u"]), tensors["out.y"]) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("n_state", [16, 64])
@pytest.mark.parametrize(
    ("parameterization", "name", "official"),
    [
        ("nplr", "legs", "legs"),
        ("diag", "legs", "diag-legs"),
        ("diag", "lin", "diag-lin"),
        ("diag", "inv", "diag-inv"),
    ],
)
def test_initial_systems_match(golden, parameterization: str, name: str, official: str, n_state: int) -> None:
    """The systems match up to the signs of the eigenvectors; only the official code clips Im(b) to [-2, 2]."""
    tensors = golden.tensors("a_s4/inits")
    a, p, b = (as_complex(tensors[f"init.{official}.N{n_state}.{letter}"]).flatten() for letter in "APB")
    system = initial_system(name, n_state, parameterization)
    order, official_order = system.a.imag.argsort(), a.imag.abs().argsort()
    a, p, b = a[official_order], p[official_order], b[official_order]
    assert relative_error(system.a[order].real, a.real) < 1e-5
    assert relative_error(system.a[order].imag, a.imag.abs()) < 1e-5
    assert relative_error(system.b[order].real.abs(), b.real.abs()) < 1e-4
    if name == "legs":
        assert relative_error(system.b[order].imag.abs().clamp(max=2), b.imag.abs()) < 1e-4
    if official == "legs":
        assert relative_error(system.p[order].abs(), p.abs()) < 1e-4


def as_complex(x: Tensor) -> Tensor:
    return x if x.is_complex() else torch.view_as_complex(x)


def run_steps(layer: S4Layer, u: Tensor) -> tuple[Tensor, Tensor]:
    state, outputs = layer.initial_state(u.shape[0]), []
    with torch.no_grad():
        for sample in u.unbind(-1):
            y, state = layer.step(sample, state)
            outputs.append(y)
    return torch.stack(outputs, dim=-1), state
