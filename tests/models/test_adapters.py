"""Tests of LoRA adapters: they act wherever a weight is used, also in fused operations."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import SashimiDenoiser, WaveNetDenoiser
from sashimi_diffusion.models.conditioning import GrownLabelEmbedding
from sashimi_diffusion.ssm import frozen

peft = pytest.importorskip("peft", reason="needs peft")


def network(kind: str = "sashimi", **options: Any) -> Any:
    torch.manual_seed(0)
    speakers = {"num_classes": 3, "num_speakers": 2, "speaker_names": ["ann", "bob"]}
    sizes = {"embedding_sines": 4, "embedding_hidden": 8, "embedding_dim": 8, "sample_size": 32}
    if kind == "wavenet":
        model: Any = WaveNetDenoiser(residual_channels=6, skip_channels=6, n_layers=2, **speakers, **sizes)
    else:
        model = SashimiDenoiser(d_model=4, n_layers=1, pool=(4,), n_state=4, **speakers, **sizes, **options)
    with torch.no_grad():  # the last layer and the embeddings are zero at first
        for parameter in [*model.output.parameters(), model.speaker_embedding.weight, model.class_embedding.weight]:
            parameter.normal_()
    return model.eval()


def predict(model: Any, length: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 1, length, generator=generator)
    with torch.no_grad(), frozen(model):
        return model(sample, 5, class_labels=torch.tensor([0, 2]), speaker_labels=torch.tensor([1, 0])).sample


def same(first: torch.Tensor, second: torch.Tensor) -> None:
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def add(model: Any, name: str = "default", seed: int = 1, **config: Any) -> None:
    model.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, **config), name)
    generator = torch.Generator().manual_seed(seed)
    for path, parameter in model.named_parameters():
        if f"lora_B.{name}" in path:
            parameter.data.normal_(0, 0.5, generator=generator)


def merged_by_hand(model: Any, adapted: Any) -> Any:
    """Return a copy of ``model`` with scaling · B · A of the adapters of ``adapted`` added to each weight."""
    merged = copy.deepcopy(model)
    with torch.no_grad():
        for name in model.linear_maps():
            layer, plain = adapted.get_submodule(name), merged.get_submodule(name)
            product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            plain.weight = (
                torch.nn.Parameter(plain.weight + 2 * product.reshape(plain.weight.shape))
                if "weight" in plain._parameters
                else plain.weight + 2 * product.reshape(plain.weight.shape)
            )
    return merged


@pytest.mark.parametrize(
    ("kind", "options"),
    [("sashimi", {"weight_norm": False}), ("sashimi", {}), ("sashimi", {"norm": "layer", "ff": 0}), ("wavenet", {})],
)
def test_adapters_act_as_merged_weights_in_every_operation(kind: str, options: dict) -> None:
    model = network(kind, **options)
    adapted = copy.deepcopy(model)
    adapted.add_adapter(peft.LoraConfig(r=2, lora_alpha=4))
    same(predict(adapted), predict(model))  # B is zero at first
    adapted = copy.deepcopy(model)
    add(adapted)
    expected = predict(merged_by_hand(model, adapted))
    torch.testing.assert_close(predict(adapted), expected, rtol=1e-4, atol=1e-4)
    assert (expected - predict(model)).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["sashimi", "wavenet"])
def test_each_adapted_map_changes_the_output_and_gets_a_gradient(kind: str) -> None:
    """No map reads its weight past the adapters, not even one in a fused operation."""
    model = network(kind)
    names = model.linear_maps()
    assert len(names) == sum(isinstance(part, (torch.nn.Linear, torch.nn.Conv1d)) for part in model.modules()) - (
        0 if kind == "sashimi" else 3  # dilated convolutions, and a layer without influence on the output
    )
    plain = predict(model)
    for name in names:
        one = copy.deepcopy(model)
        add(one, target_modules=[name])
        assert [path for path, _ in one._adapted()] == [name]
        assert (predict(one) - plain).abs().max() > 1e-3, name
    add(model)
    sample = torch.randn(2, 1, 32)
    labels = torch.tensor([0, 1])
    model(sample, 5, class_labels=labels, speaker_labels=labels).sample.square().sum().backward()
    for path, parameter in model.named_parameters():
        is_adapter = ".lora_" in path
        assert parameter.requires_grad == is_adapter, path
        assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == is_adapter, path


def test_samples_adjacent_layouts_use_the_adapters_too() -> None:
    """The pools permute their weights on other layouts; the U-net has both."""
    model = network()
    pool = next(part for part in model.modules() if type(part).__name__ == "DownPool")
    x = torch.randn(1, 4, 8)
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    plain = pool(x)
    add(model)
    torch.testing.assert_close(pool(strided), pool(x))
    assert not torch.allclose(pool(x), plain)


def test_fusing_disabling_and_unloading() -> None:
    model = network()
    plain = predict(model)
    add(model)
    adapted = predict(model)
    model.disable_adapters()
    same(predict(model), plain)
    model.enable_adapters()
    same(predict(model), adapted)
    model.fuse_lora()
    torch.testing.assert_close(predict(model), adapted, rtol=1e-4, atol=1e-5)
    model.disable_lora()
    torch.testing.assert_close(predict(model), plain, rtol=1e-4, atol=1e-4)
    model.enable_lora()
    model.unfuse_lora()
    torch.testing.assert_close(predict(model), adapted, rtol=1e-4, atol=1e-4)
    model.fuse_lora(lora_scale=0.5)
    half = predict(model)
    model.unload_lora()
    assert model.adapter_names() == []
    assert not any("lora" in name or "base_layer" in name for name in model.state_dict())
    same(predict(model), half)
    assert model.state_dict().keys() == network().state_dict().keys()


def test_several_adapters() -> None:
    model = network(weight_norm=False)
    plain = predict(model)
    add(model, "one", seed=1)
    one = predict(model)
    add(model, "two", seed=2)
    two = predict(model)
    model.set_adapters(["one", "two"], [1.0, 0.0])
    torch.testing.assert_close(predict(model), one)
    model.set_adapters("two", 0.0)
    torch.testing.assert_close(predict(model), plain)
    model.set_adapters(["two"])
    torch.testing.assert_close(predict(model), two)
    assert model.active_adapters() == ["two"]
    model.delete_adapters("two")
    model.set_adapter("one")
    torch.testing.assert_close(predict(model), one)
    model.delete_adapters(["one"])
    same(predict(model), plain)


def test_a_change_of_adapters_is_seen_while_the_network_is_frozen() -> None:
    model = network()
    plain = predict(model)
    add(model)
    adapted = predict(model)
    with torch.no_grad(), frozen(model):
        same(predict(model), adapted)
        before = model.adapter_state()
        model.disable_adapters()
        same(predict(model), plain)
        assert model.adapter_state() != before


def test_a_saved_adapter_is_the_same(tmp_path: Path) -> None:
    model = network()
    add(model)
    model.add_speakers(["cay"], torch.full((1, 8), 0.3))
    model.save_lora_adapter(tmp_path, speakers=["cay"])
    loaded = network()
    loaded.load_lora_adapter(tmp_path)
    same(predict(loaded), predict(model))
    assert loaded.config.speaker_names == ["ann", "bob", "cay"]
    assert torch.equal(loaded.speaker_embedding.weight, model.speaker_embedding.weight)
    assert loaded.adapter_names() == ["default"]


def test_files_that_are_no_adapter_of_the_network_are_refused(tmp_path: Path) -> None:
    model = network()
    add(model)
    model.save_lora_adapter(tmp_path, weight_name="own.safetensors")
    wider = SashimiDenoiser(d_model=8, n_layers=1, pool=(4,), n_state=4, sample_size=32)
    with pytest.raises(UserError, match="another network"):
        wider.load_lora_adapter(tmp_path, weight_name="own.safetensors")
    assert wider.adapter_names() == []
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    tensors = load_file(tmp_path / "own.safetensors")
    save_file({name: tensor * torch.nan for name, tensor in tensors.items()}, tmp_path / "nan.safetensors")
    for name, message in (
        ("other", "no adapter of this package"),
        ("text", "cannot read"),
        ("nan", "NaN or infinite"),
        ("missing", "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            network().load_lora_adapter(tmp_path / f"{name}.safetensors")


def test_what_adapters_cannot_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    for config, message in (
        (peft.LoraConfig(target_modules=["speaker_embedding"]), "speaker_embedding is no linear map"),
        (peft.LoraConfig(target_modules=["attention"]), "no part of this network"),
        (peft.LoraConfig(lora_dropout=0.1), "lora_dropout=0.1 is not supported"),
        (peft.LoraConfig(use_dora=True), "use_dora=True is not supported"),
        ("lora", "expected a peft.LoraConfig"),
    ):
        with pytest.raises(UserError, match=message):
            model.add_adapter(config)
    for change in (model.fuse_lora, model.disable_adapters, model.unload_lora):
        with pytest.raises(UserError, match="has no adapter"):
            change()
    add(model)
    with pytest.raises(UserError, match="already has an adapter 'default'"):
        add(model)
    with pytest.raises(UserError, match="has no adapter 'other'"):
        model.set_adapters("other")
    with pytest.raises(UserError, match="fuse_lora"):
        model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="already has the speaker 'ann'"):
        model.add_speakers(["ann"])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="pip install peft"):
        network().add_adapter(None)


def test_a_grown_embedding_trains_only_the_new_labels() -> None:
    model = network()
    model.add_speakers(["cay", "dee"])
    table = model.speaker_embedding.weight.detach().clone()
    torch.testing.assert_close(table[2], table[:2].mean(dim=0))
    grown = GrownLabelEmbedding(model.speaker_embedding, 2)
    labels = torch.tensor([0, 2, 3, 4])
    assert torch.equal(grown(labels, 4), table[labels])
    assert torch.equal(grown(None, 2), table[[4, 4]])
    grown(labels, 4).sum().backward()
    assert [name for name, parameter in grown.named_parameters() if parameter.grad is not None] == ["added"]
    assert torch.equal(grown.plain().weight, table)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m.add_adapter(peft.LoraConfig(r=0), "new"),
            "r of the adapter is 0: expected a rank from 1 to 4,096",
        ),
        (lambda m: m.add_adapter(peft.LoraConfig(r=10**6), "new"), "r of the adapter is 1000000: expected a rank"),
        (lambda m: m.add_adapter(peft.LoraConfig(lora_alpha=float("nan")), "new"), "lora_alpha of adapters: nan is no"),
        (lambda m: m.add_adapter(peft.LoraConfig(), "a.b"), "adapter_name is 'a.b': expected a text without dots"),
        (lambda m: m.add_adapter(peft.LoraConfig(), ""), "adapter_name is '': expected a text without dots"),
        (lambda m: m.set_adapters(["default"], ["x"]), "weights of adapters: 'x' is no finite number"),
        (lambda m: m.set_adapters(["default"], [float("nan")]), "weights of adapters: nan is no finite number"),
        (lambda m: m.fuse_lora(float("inf")), "lora_scale of adapters: inf is no finite number"),
        (lambda m: m.load_lora_adapter(5), "no adapter 5: expected a file"),
        (lambda m: m.add_speakers("abc"), "names of speakers: expected a list of texts, got 'abc'"),
        (lambda m: m.add_speakers(["cat", 1]), "names of speakers: expected texts that are not empty, got 1"),
        (lambda m: m.add_speakers([None]), "names of speakers: expected texts that are not empty, got None"),
        (lambda m: m.add_speakers([""]), "names of speakers: expected texts that are not empty, got ''"),
        (lambda m: m.add_speakers(["cat", "cat"]), "already has the speaker 'cat'"),
        (lambda m: m.speaker_rows("ann"), "names of speakers: expected a list of texts, got 'ann'"),
    ],
)
def test_wrong_arguments_are_refused_and_change_nothing(call: Any, message: str) -> None:
    model = network()
    add(model)
    before = predict(model)
    with pytest.raises(UserError, match=message):
        call(model)
    assert torch.equal(predict(model), before)
    assert (model.adapter_names(), model.config.num_speakers) == (["default"], 2)


def test_all_linear_is_the_default() -> None:
    first, second = network(), network()
    for model, targets in ((first, None), (second, "all-linear")):
        torch.manual_seed(1)
        add(model, target_modules=targets)
    assert torch.equal(predict(first), predict(second))
    second.set_adapters(["default"], [None])
    assert torch.equal(predict(first), predict(second))


def test_names_of_labels_differ() -> None:
    with pytest.raises(UserError, match="class_names has a name twice"):
        WaveNetDenoiser(residual_channels=4, n_layers=1, num_classes=2, class_names=["a", "a"])
