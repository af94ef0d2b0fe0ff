"""Tests of which checkpoints are converted: the published configurations, and nothing that differs from them."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.interop.diffwave import convert_diffwave
from sashimi_diffusion.interop.files import read_state_dict

PUBLISHED = [
    *(
        f"{branch}_{name}"
        for branch in ("master", "ckpt")
        for name in (
            "unet_d128_n6_pool_2_expand2_ff2_uncond",
            "unet_d64_n6_pool_2_expand2_ff2_uncond",
            "unet_d32_n6_pool_2_expand2_ff2_L16000_hop256_cond",
            "snet_d64_n6_uncond",
            "wnet_h256_d36_uncond",
            "wnet_h128_d30_uncond",
            "wnet_h64_d36_cond",
        )
    )
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_recognized(golden, name: str) -> None:
    info = golden.info(f"keys/dw_{name}")
    config = info["config"]
    state = {
        key: torch.zeros(shape, dtype=getattr(torch, dtype)) for key, (shape, dtype, _) in info["state_dict"].items()
    }
    conversion = convert_diffwave(state)
    model, found = conversion.model, conversion.model.config
    assert sum(parameter.numel() for parameter in model.parameters()) == info["n_params"]
    vocoder = not config["unconditional"]
    assert (found.mel_channels, found.sample_rate) == ((80, 22050) if vocoder else (None, 16000))
    assert (conversion.scheduler.config.num_train_timesteps, conversion.scheduler.config.beta_end) == (
        (50, 0.05) if vocoder else (200, 0.02)
    )
    assert list(found.mel_upsample) == config.get("mel_upsample", [16, 16])
    embedding = [found.embedding_sines, found.embedding_hidden, found.embedding_dim]
    assert embedding == [config[f"diffusion_step_embed_dim_{part}"] for part in ("in", "mid", "out")]
    if config["_name_"] == "wavenet":
        sizes = [found.residual_channels, found.skip_channels, found.n_layers, found.dilation_cycle]
        assert sizes == [config[k] for k in ("res_channels", "skip_channels", "num_res_layers", "dilation_cycle")]
        assert found.step_on_residual
    else:
        for key in ("unet", "d_model", "n_layers", "pool", "expand", "ff"):
            assert found[key] == config[key], key
        assert (found.sample_size, found.n_state) == (config["L"], 64)
        assert found.parameterization == ("legacy" if info["version"] == "ckpt" else "nplr")
        assert found.mel_alignment == ("official" if vocoder else "stage")


CHANGES = {
    "missing": (lambda state, key: state.pop(key), "missing {key}"),
    "misshapen": (lambda state, key: state.update({key: torch.zeros(7, 3, 1)}), "misshapen {key}"),
    "extra": (lambda state, key: state.update({key + "2": torch.zeros(1)}), "unexpected {key}2"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["master_sashimi_unet_L16000", "ckpt_sashimi_snet_uncond", "ckpt_wavenet_vocoder"])
def test_a_tensor_that_does_not_fit_is_named(official: Callable, name: str, change: str) -> None:
    network = official(f"d_diffwave/{name}")
    apply, message = CHANGES[change]
    for key in list(network.state)[:: 1 + len(network.state) // 12]:
        changed = network._replace(state=dict(network.state))
        apply(changed.state, key)
        with pytest.raises(UserError) as caught:
            changed.convert()
        assert message.format(key=key) in str(caught.value)


SHAPES_THAT_DETERMINE_THE_CONFIGURATION = {
    "master_sashimi_unet_L16000": [
        "init_conv.0.conv.weight_v",
        "d_layers.1.linear.conv.weight_v",
        "c_layers.0.layer.kernel.kernel.B",
        "c_layers.0.layer.kernel.kernel.C",
        "c_layers.0.ff.ff.0.conv.weight_v",
        "u_layers.3.layer.kernel.kernel.L",
        "fc_t1.weight",
    ],
    "ckpt_sashimi_unet_vocoder": [
        "c_layers.0.layer.kernel.krylov.C",
        "u_layers.5.layer.kernel.krylov.nodes",
        "c_layers.0.mel_conv.conv.weight_v",
        "c_layers.0.upsample_conv2d.1.weight_v",
        "final_conv.2.conv.weight",
    ],
}


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name, keys in SHAPES_THAT_DETERMINE_THE_CONFIGURATION.items() for key in keys]
)
def test_a_wrong_shape_that_determines_the_configuration_is_refused(official: Callable, name: str, key: str) -> None:
    network = official(f"d_diffwave/{name}")
    dims = network.state[key].ndim
    for shape in [(), (3,), (0, 2, 1), (7,) * dims, (2,) * dims, (64,) * dims, (9, 1, 5, 2)[:dims]]:
        if network.state[key].shape != shape:
            changed = network._replace(state={**network.state, key: torch.zeros(shape)})
            with pytest.raises(UserError, match="does not fit"):
                changed.convert(length=None)


def test_up_to_twelve_tensors_that_do_not_fit_are_listed(official: Callable) -> None:
    network = official("d_diffwave/master_sashimi_unet_L16000")
    for key in [key for key in network.state if ".norm1." in key or ".norm2." in key]:
        del network.state[key]
    network.state["one"] = network.state["two"] = torch.zeros(1)
    with pytest.raises(UserError) as caught:
        network.convert()
    assert str(caught.value).count("missing") == 12
    assert "and 10 more" in str(caught.value)


@pytest.mark.parametrize("state", [{"weight": torch.zeros(2)}, {"init_conv.0.conv.weight_v": torch.zeros(2)}])
def test_another_network_is_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match=r"init_conv\.0\.conv\.weight_v"):
        convert_diffwave(state)


def test_settings_that_the_file_does_not_contain_are_required(official: Callable) -> None:
    with pytest.raises(UserError, match=r"4 WaveNet layers.*--dilation-cycle"):
        official("d_diffwave/ckpt_wavenet_vocoder").convert(dilation_cycle=None)
    with pytest.raises(UserError, match=r"--length 2048 does not fit.*1024 samples"):
        official("d_diffwave/ckpt_sashimi_snet_uncond").convert(length=2048)


STATE = {"a": torch.arange(3.0), "b.c": torch.ones(2, 2)}


@pytest.mark.parametrize("kind", ["official", "bare", "safetensors"])
def test_supported_files_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pkl")
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        optimizer = {
            "state": {0: {"step": 3, "exp_avg": torch.zeros(2)}},
            "param_groups": [{"lr": 1e-3, "params": [0]}],
        }
        official = {"model_state_dict": STATE, "optimizer_state_dict": optimizer}
        torch.save(official if kind == "official" else STATE, path)
    state = read_state_dict(path)
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)


class RunsCode:
    """Object of a malicious checkpoint: unpickling it would call a function."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_a_file_that_would_run_code_is_refused(tmp_path: Path, save: Callable) -> None:
    path, proof = tmp_path / "x.pkl", tmp_path / "code-was-run"
    save({"model_state_dict": {"a": RunsCode(proof)}}, path)
    with pytest.raises(UserError, match="refused"):
        read_state_dict(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.pkl", b"", "no checkpoint that torch can read .it is empty.: expected an official checkpoint"),
        ("x.pkl", b"hello, this is text\n", "no checkpoint that torch can read .it is a text file."),
        ("x.pkl", b"i, in ASCII only", "no checkpoint that torch can read .it is a text file."),
        ("x.pt", b"RIFF\x10\x00\x00\x00WAVEfmt ", "no checkpoint that torch can read .it is an audio file."),
        ("x.pt", b"PK\x03\x04\x00 cut short", "no checkpoint that torch can read .it is damaged or cut short: "),
        ("x.pt", b"\x00\x01\x02", "no checkpoint that torch can read .*: expected an official checkpoint"),
        ("x.safetensors", b"\x00" * 20, "no checkpoint that torch can read"),
        ("x.pkl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_state_dict(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize("content", [{}, [torch.zeros(2)], {"a": 3}, {0: torch.zeros(2)}, {"model_state_dict": None}])
def test_files_without_a_state_dict_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pkl")
    with pytest.raises(UserError, match="contains no state dict"):
        read_state_dict(tmp_path / "x.pkl")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist: expected an official checkpoint"):
        read_state_dict(tmp_path / "x.pkl")
