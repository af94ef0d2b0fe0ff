"""The layers of the official networks, tensor by tensor."""

import torch
from torch import Tensor, nn

from sashimi_diffusion.interop.checkpoint import Checkpoint
from sashimi_diffusion.models.blocks import Block, ScalarNorm
from sashimi_diffusion.models.conditioning import MelUpsampler
from sashimi_diffusion.ssm import S4Layer, StateSpace
from sashimi_diffusion.ssm.legacy_s4 import LegacyS4, Nodes
from sashimi_kernels.discretization import discretize_nplr, real_matrix, real_output


def load_linear(checkpoint: Checkpoint, name: str, layer: nn.Module) -> None:
    """A layer without weight normalization."""
    checkpoint.copy(layer.weight, f"{name}.weight")
    checkpoint.copy(layer.bias, f"{name}.bias")


def load_normalized(checkpoint: Checkpoint, name: str, layer: nn.Module) -> None:
    """A layer with weight normalization: gain g, direction v."""
    weight = layer.parametrizations.weight
    checkpoint.copy(weight.original0, f"{name}.weight_g")
    checkpoint.copy(weight.original1, f"{name}.weight_v")
    checkpoint.copy(layer.bias, f"{name}.bias")


def load_mel(checkpoint: Checkpoint, name: str, mel: MelUpsampler | None) -> None:
    """The mel upsampler of the block called ``name``, if it has one."""
    if mel is None:
        return
    for index, layer in enumerate(mel.upsample):
        load_normalized(checkpoint, f"{name}.upsample_conv2d.{index}", layer)
    load_normalized(checkpoint, f"{name}.mel_conv.conv", mel.projection)


def load_norm(checkpoint: Checkpoint, name: str, norm: ScalarNorm) -> None:
    checkpoint.copy(norm.gain, f"{name}.s")
    checkpoint.copy(norm.shift, f"{name}.m")


def load_block(checkpoint: Checkpoint, name: str, block: Block) -> None:
    """A block of the official SaShiMi: an S4 layer and a feed-forward layer."""
    s4, feed_forward = block
    load_norm(checkpoint, f"{name}.norm1", s4.norm)
    load_linear(checkpoint, f"{name}.fc_t", s4.step_projection)
    load_s4 = load_legacy_s4 if isinstance(s4.s4, LegacyS4) else load_newer_s4
    load_s4(checkpoint, f"{name}.layer", s4.s4)
    load_mel(checkpoint, name, s4.mel)
    load_norm(checkpoint, f"{name}.norm2", feed_forward.norm)
    load_normalized(checkpoint, f"{name}.ff.ff.0.conv", feed_forward.input_linear)
    load_normalized(checkpoint, f"{name}.ff.ff.2.conv", feed_forward.output_linear)


def load_newer_s4(checkpoint: Checkpoint, name: str, layer: S4Layer) -> None:
    """The S4 layer of the official main branch, whose file holds C (I - Ā^L) in the place of C once it has been run."""
    ssm, kernel = layer.ssm, f"{name}.kernel.kernel"
    checkpoint.copy(ssm.log_dt, f"{kernel}.log_dt")
    checkpoint.copy(ssm.log_neg_real, f"{kernel}.inv_w_real")
    checkpoint.copy(ssm.imag, f"{kernel}.w_imag")
    for target, part in ((ssm.B, "B"), (ssm.P, "P")):
        checkpoint.copy(target.detach().unsqueeze(0), f"{kernel}.{part}")  # one row: the rank is 1
    checkpoint.copy(ssm.D, f"{name}.D")
    load_linear(checkpoint, f"{name}.output_linear.0", layer.output_linear)
    stored = checkpoint.take(f"{kernel}.C", ssm.C.shape)
    length = int(checkpoint.take(f"{kernel}.L", ()))
    with torch.no_grad():
        ssm.C.copy_(stored if length == 0 else output_from_truncated(ssm, stored, length))


def output_from_truncated(ssm: StateSpace, truncated: Tensor, length: int) -> Tensor:
    """C from C (I - Ā^length) (arXiv 2111.00396, appendix C.3), in float64 and the real basis of the conjugate pairs.

    Args:
        ssm: the state space that gives Ā.
        truncated: C (I - Ā^length), real (M, H, N, 2).
        length: of the kernel it was made for.

    Returns:
        C, float64 (M, H, N, 2).
    """
    matrix = real_matrix(discretize_nplr(*ssm.continuous_system()))  # (H, 2N, 2N)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    correction = identity - torch.linalg.matrix_power(matrix, length)
    rows = real_output(torch.view_as_complex(truncated.double()))  # (M, H, 2N)
    solved = torch.linalg.solve(correction.mT, rows.permute(1, 2, 0)).permute(2, 0, 1)
    real, imag = solved.chunk(2, dim=-1)
    return torch.stack([real / 2, -imag / 2], dim=-1)


def load_legacy_s4(checkpoint: Checkpoint, name: str, layer: LegacyS4) -> None:
    """The S4 layer of the official checkpoints branch. Its inexact nodes are checked and left out."""
    ssm, n_nodes = layer.ssm, layer.ssm.length // 2 + 1
    for way, kernel in enumerate(legacy_kernels(name)):
        checkpoint.copy(ssm.log_dt[way], f"{kernel}.log_dt")
        checkpoint.copy(ssm.A[way], f"{kernel}.w")
        input_and_p = checkpoint.take(f"{kernel}.B", (2, *ssm.B.shape[1:]))
        output_and_q = checkpoint.take(f"{kernel}.C", (ssm.d_model, 2, *ssm.C.shape[2:]))
        for node in ("nodes", "z"):
            checkpoint.take(f"{kernel}.{node}", (n_nodes, 2))
        with torch.no_grad():
            for target, value in zip((ssm.B, ssm.P), input_and_p.unbind(0), strict=True):
                target[way] = value
            for target, value in zip((ssm.C, ssm.Q), output_and_q.unbind(1), strict=True):
                target[way] = value
    checkpoint.copy(ssm.D, f"{name}.D")
    with torch.no_grad():
        weight = checkpoint.take(f"{name}.output_linear.weight", layer.output_linear.weight.shape[:2])
        bias = checkpoint.take(f"{name}.output_linear.bias", (*layer.output_linear.bias.shape, 1))
        layer.output_linear.weight.copy_(weight.unsqueeze(-1))
        layer.output_linear.bias.copy_(bias.squeeze(-1))


def legacy_kernels(name: str) -> tuple[str, str]:
    """Names of the causal and of the reverse kernel of the older S4 layer called ``name``."""
    return f"{name}.kernel.krylov", f"{name}.kernel2.krylov"


def stored_nodes(checkpoint: Checkpoint, name: str) -> Nodes:
    """The nodes in the file, as the official code uses them (in single precision, off by up to 1e-4)."""

    def both_ways(part: str) -> Tensor:
        stored = torch.stack([checkpoint.tensors[f"{kernel}.{part}"] for kernel in legacy_kernels(name)])
        return torch.view_as_complex(stored.double())

    return Nodes(both_ways("z"), 2 / (1 + both_ways("nodes")))
