"""Loading of single layers from official checkpoints.

``name`` is always the official name of the layer, the prefix of the names of its tensors. The functions record tensors
that do not fit in the :class:`Checkpoint`, which reports them at the end.
"""

import torch
from torch import Tensor, nn

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.interop.checkpoint import Checkpoint
from sashimi_diffusion.models.backbone import SashimiBackbone
from sashimi_diffusion.models.blocks import Block, ResidualFeedForward, ResidualS4
from sashimi_diffusion.models.conditioning import MelUpsampler
from sashimi_diffusion.ssm import S4Layer, StateSpace
from sashimi_diffusion.ssm.legacy_s4 import LegacyS4
from sashimi_kernels.discretization import discretize_nplr, real_matrix, real_output


def layers_by_list(backbone: SashimiBackbone) -> dict[str, list[nn.Module]]:
    """Return the blocks and pools of ``backbone`` in the order of execution, under the names of the official lists."""
    down: list[nn.Module] = []
    up: list[nn.Module] = []
    for blocks, down_pool in zip(backbone.down, backbone.down_pools, strict=True):
        down += [*blocks, down_pool]
    for blocks, up_pool in zip(reversed(backbone.up), reversed(backbone.up_pools), strict=True):
        up += [up_pool, *blocks]
    return {"d_layers": down, "c_layers": list(backbone.center), "u_layers": up}


def load_linear(checkpoint: Checkpoint, name: str, layer: nn.Module) -> None:
    """Load a layer without weight normalization."""
    for part in ("weight", "bias"):
        checkpoint.copy(layer.get_parameter(part), f"{name}.{part}")


def load_normalized(checkpoint: Checkpoint, name: str, layer: nn.Module) -> None:
    """Load a layer with weight normalization: gain g and direction v."""
    checkpoint.copy(layer.get_parameter("parametrizations.weight.original0"), f"{name}.weight_g")
    checkpoint.copy(layer.get_parameter("parametrizations.weight.original1"), f"{name}.weight_v")
    checkpoint.copy(layer.get_parameter("bias"), f"{name}.bias")


def load_mel(checkpoint: Checkpoint, name: str, mel: nn.Module | None) -> None:
    """Load the mel upsampler of the block called ``name``, if it has one."""
    if mel is None:
        return
    assert isinstance(mel, MelUpsampler)
    for index, layer in enumerate(mel.upsample):
        load_normalized(checkpoint, f"{name}.upsample_conv2d.{index}", layer)
    load_normalized(checkpoint, f"{name}.mel_conv.conv", mel.projection)


def load_norm(checkpoint: Checkpoint, name: str, norm: nn.Module) -> None:
    """Load a :class:`ScalarNorm`."""
    checkpoint.copy(norm.get_parameter("gain"), f"{name}.s")
    checkpoint.copy(norm.get_parameter("shift"), f"{name}.m")


def load_block(checkpoint: Checkpoint, name: str, block: Block) -> None:
    """Load a block of the official SaShiMi: an S4 layer and a feed-forward layer."""
    s4, feed_forward = block
    assert isinstance(s4, ResidualS4)
    assert isinstance(feed_forward, ResidualFeedForward)
    load_norm(checkpoint, f"{name}.norm1", s4.norm)
    load_linear(checkpoint, f"{name}.fc_t", s4.get_submodule("step_projection"))
    if isinstance(s4.s4, LegacyS4):
        load_legacy_s4(checkpoint, f"{name}.layer", s4.s4)
    else:
        assert isinstance(s4.s4, S4Layer)
        load_s4(checkpoint, f"{name}.layer", s4.s4)
    load_mel(checkpoint, name, s4.mel)
    load_norm(checkpoint, f"{name}.norm2", feed_forward.norm)
    load_normalized(checkpoint, f"{name}.ff.ff.0.conv", feed_forward.input_linear)
    load_normalized(checkpoint, f"{name}.ff.ff.2.conv", feed_forward.output_linear)


def require_rank_one(checkpoint: Checkpoint, kernel: str) -> None:
    """Raise UserError if the S4 kernel called ``kernel`` has a low-rank term of higher rank.

    A tensor of another shape is ignored here; :meth:`Checkpoint.take` reports it.
    """
    low_rank = checkpoint.tensors.get(f"{kernel}.P")
    if low_rank is not None and low_rank.ndim == 4 and low_rank.shape[0] > 1:
        raise UserError(
            f"the S4 layers of the checkpoint have a low-rank term of rank {low_rank.shape[0]} (as with measure legt): "
            "only rank 1 is supported"
        )


def load_s4(checkpoint: Checkpoint, name: str, layer: S4Layer) -> None:
    """Load an S4 layer of the main branch of the official DiffWave code."""
    ssm, kernel = layer.ssm, f"{name}.kernel.kernel"
    checkpoint.copy(ssm.log_dt, f"{kernel}.log_dt")
    checkpoint.copy(ssm.get_parameter("log_neg_real"), f"{kernel}.inv_w_real")
    checkpoint.copy(ssm.imag, f"{kernel}.w_imag")
    for part in ("B", "P"):
        checkpoint.copy(ssm.get_parameter(part).detach().unsqueeze(0), f"{kernel}.{part}")  # one row, as the rank is 1
    checkpoint.copy(ssm.D, f"{name}.D")
    load_linear(checkpoint, f"{name}.output_linear.0", layer.output_linear)
    load_output_vectors(checkpoint, kernel, "L", ssm)


def load_output_vectors(checkpoint: Checkpoint, kernel: str, length_name: str, ssm: StateSpace) -> None:
    """Load C. Once the official code has computed a kernel of length L, it stores C (I - Ā^L) instead of C.

    Args:
        checkpoint: the state dict.
        kernel: name of the official kernel module.
        length_name: name of the buffer with L, which is 0 before the first kernel is computed.
        ssm: the state space; its other parameters must already be loaded.
    """
    stored = checkpoint.take(f"{kernel}.C", tuple(ssm.C.shape))
    length = int(checkpoint.take(f"{kernel}.{length_name}", (), whole=True))
    if length < 0:
        checkpoint.report(f"{kernel}.{length_name} is {length}, expected a length")
        return
    with torch.no_grad():
        try:
            value = stored if length == 0 else output_from_truncated(ssm, stored, length)
        except torch.linalg.LinAlgError:
            checkpoint.report(f"no solution for {kernel}.C with the length {length}")
            return
    checkpoint.copy_computed(ssm.C, value, f"{kernel}.C")


def output_from_truncated(ssm: StateSpace, truncated: Tensor, length: int) -> Tensor:
    """Return C from C (I - Ā^length) (arXiv 2111.00396, appendix C.3).

    The linear system is solved in float64 and in the real basis of the conjugate pairs.

    Args:
        ssm: the state space that defines Ā.
        truncated: C (I - Ā^length), real (M, H, N, 2), with M output vectors for each feature.
        length: length of the kernel in samples.

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
    """Load an S4 layer of the checkpoints branch of the official DiffWave code.

    The FFT nodes of the file have errors of up to 1e-4, because they are in single precision. They are loaded if the
    layer stores nodes; otherwise only their shape is checked.
    """
    ssm = layer.ssm
    for direction, kernel in enumerate((f"{name}.kernel.krylov", f"{name}.kernel2.krylov")):  # causal, reverse
        checkpoint.copy(ssm.log_dt[direction], f"{kernel}.log_dt")
        checkpoint.copy(ssm.A[direction], f"{kernel}.w")
        input_and_p = checkpoint.take(f"{kernel}.B", (2, *ssm.B.shape[1:]))
        output_and_q = checkpoint.take(f"{kernel}.C", (ssm.d_model, 2, *ssm.C.shape[2:]))
        with torch.no_grad():
            for target, value in zip((ssm.B, ssm.P), input_and_p.unbind(0), strict=True):
                target[direction] = value
            for target, value in zip((ssm.C, ssm.Q), output_and_q.unbind(1), strict=True):
                target[direction] = value
            for buffer, part in ((ssm.omega, "nodes"), (ssm.z, "z")):
                # z is infinite at ω = -1, which some versions of the official code store.
                nodes = checkpoint.take(f"{kernel}.{part}", (ssm.length // 2 + 1, 2), finite=part != "z")
                if buffer is not None:
                    buffer[direction] = nodes
    checkpoint.copy(ssm.D, f"{name}.D")
    weight, bias = (layer.output_linear.get_parameter(part).detach() for part in ("weight", "bias"))
    checkpoint.copy(weight.squeeze(-1), f"{name}.output_linear.weight")  # (H, 2 H)
    checkpoint.copy(bias.unsqueeze(-1), f"{name}.output_linear.bias")  # (H, 1)
