"""Tests of converting the official SC09 classifier from every file format, and of refusing unsafe pickles."""

import contextlib
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.interop.pickled_network import read_tensors
from sashimi_evaluation.classifiers import ResNeXtClassifier, load_classifier
from sashimi_evaluation.classifiers.official_checkpoint import convert_classifier, official_name
from sashimi_evaluation.commands.convert import main


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Return the state dict of a small network with the official names."""
    torch.manual_seed(0)
    model = ResNeXtClassifier(depth=11, cardinality=2, base_width=4, widen_factor=1)
    return {
        official_name(name): tensor.clone() if tensor.ndim == 0 else torch.rand_like(tensor)
        for name, tensor in model.state_dict().items()
    }


def test_the_published_names_are_recognized(golden) -> None:
    info = golden.info("keys/sc09_classifier_resnext29_8x64")
    state = {
        f"module.{name}": torch.zeros(shape, dtype=getattr(torch, dtype))
        for name, (shape, dtype, _) in info["state_dict"].items()
    }
    model = convert_classifier(state)
    assert sum(parameter.numel() for parameter in model.parameters()) == info["n_params"]
    assert dict(model.config)["depth"] == info["config"]["depth"]


def test_logits_agree_with_the_official_network(golden) -> None:
    tensors = golden.tensors("g_audio/quantise_mel_features")
    model = convert_classifier({n.removeprefix("clf.sd."): t for n, t in tensors.items() if n.startswith("clf.sd.")})
    assert not model.training
    with torch.no_grad():
        logits = model.from_mel(tensors["out.clf_mel32"][None, None]).logits
    assert (logits - tensors["out.clf_logits"]).abs().max() < 1e-5 * logits.abs().max()


def test_tensors_that_do_not_fit_are_listed(tensors: dict[str, Tensor]) -> None:
    tensors["classifier.scale"] = tensors.pop("classifier.bias")
    tensors["bn_1.weight"] = torch.zeros(3)
    with pytest.raises(UserError, match=r"misshapen bn_1.weight.*missing classifier.bias.*unexpected classifier.scale"):
        convert_classifier(tensors)


def network_of(tensors: dict[str, Tensor], where: types.ModuleType) -> nn.Module:
    """Return an ``nn.DataParallel`` around a network with these tensors; its classes belong to the module ``where``."""
    where.Net = type("Net", (nn.Module,), {"__module__": where.__name__})
    root = where.Net()
    for name, tensor in tensors.items():
        *parents, last = name.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.BatchNorm2d(1) if parent.startswith("bn") else where.Net())
            module = getattr(module, parent)
        if "running" in last or "num_batches" in last:
            module.register_buffer(last, tensor)
        else:
            setattr(module, last, nn.Parameter(tensor))
    return nn.DataParallel(root)


@pytest.fixture
def remove_official_code(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Create an importable module ``official_code`` and return a function that removes it."""
    module = types.ModuleType("official_code")
    monkeypatch.setitem(sys.modules, "official_code", module)
    return lambda: monkeypatch.delitem(sys.modules, "official_code")


@pytest.mark.parametrize("form", ["pickled network", "state dict", "checkpoint", "safetensors"])
def test_every_form_is_converted(
    tensors: dict[str, Tensor], remove_official_code: Callable, tmp_path: Path, capsys: pytest.CaptureFixture, form: str
) -> None:
    file = tmp_path / ("official.safetensors" if form == "safetensors" else "official.pth")
    if form == "pickled network":
        torch.save(network_of(tensors, sys.modules["official_code"]), file)
    elif form == "safetensors":
        save_file(tensors, file)
    else:
        torch.save({"state_dict": tensors} if form == "checkpoint" else tensors, file)
    remove_official_code()
    assert main([str(file), str(tmp_path / "out")]) == 0
    assert "ResNeXt-11 2x4d, widen 1" in capsys.readouterr().out
    loaded = load_classifier(tmp_path / "out").model.state_dict()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, tensors[official_name(name)]), name


@pytest.mark.parametrize("exists", [False, True])
def test_all_files_have_the_rights_of_the_umask(tensors: dict[str, Tensor], tmp_path: Path, exists: bool) -> None:
    torch.save(tensors, tmp_path / "official.pth")
    out, usual = tmp_path / "out", tmp_path / "usual"
    usual.touch()
    if exists:
        out.mkdir()
    assert main([str(tmp_path / "official.pth"), str(out)]) == 0
    rights = {path.name: path.stat().st_mode for path in out.iterdir()}
    assert rights == dict.fromkeys(rights, usual.stat().st_mode)


@pytest.mark.parametrize("option", [["--length", "16000"], ["--beta-start", "1e-4"], ["--stored-nodes"]])
def test_an_option_that_does_not_apply_is_refused(
    tensors: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture, option: list[str]
) -> None:
    torch.save(tensors, tmp_path / "official.pth")
    assert main([str(tmp_path / "official.pth"), str(tmp_path / "out"), *option]) == 2
    assert f"{option[0]} does not apply: the checkpoint is of a classifier" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class Attack:
    """Object that calls a function when it is unpickled by ``pickle``."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, os.makedirs, Path.mkdir, exec])
def test_nothing_in_a_pickle_is_run(
    tensors: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: Callable
) -> None:
    monkeypatch.chdir(tmp_path)
    argument = {exec: "import os; os.mkdir('run')", Path.mkdir: Path("run")}.get(function, "run")
    torch.save(Attack(function, argument), "attack.pth")
    torch.load("attack.pth", weights_only=False)
    Path("run").rmdir()  # without protection the pickle runs its function
    with pytest.raises(UserError, match=r"attack\.pth is refused: .* weights_only=False\) and then torch\.save"):
        read_tensors("attack.pth")
    network = nn.Linear(2, 2)
    network.trap = Attack(function, argument)
    torch.save(network, "attack.pth")
    with contextlib.suppress(UserError):  # torch refuses some of the functions itself
        assert read_tensors("attack.pth").keys() == {"weight", "bias"}
    assert not Path("run").exists()
