"""Tests of runs that start from a pipeline and train LoRA adapters and the embedding of a new speaker."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from sashimi_diffusion import SashimiPipeline
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.config import check_same_run, from_tree, load_config
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.loop import train
from sashimi_diffusion.training.packaged_configs import CONFIGS
from sashimi_diffusion.training.splits import open_split

pytest.importorskip("peft", reason="needs peft")

SHORT = (
    *("data.speakers=speaker", "training.steps=4", "training.checkpoint_every=2", "training.keep_checkpoints=9"),
    *("training.ema_decay=0", "sampling.num_samples=0", "optimizer.decay=constant", "optimizer.warmup_steps=0"),
)


@pytest.fixture
def base(tiny: Any, tmp_path: Path) -> Path:
    """Return the pipeline of a network that was trained with one of the two voices."""
    tree = tiny(*SHORT, "data.where.speaker=[a]", f"output_dir={tmp_path / 'base'}")
    return train(DiffusionTask, from_tree(DiffusionConfig, tree)) / "pipeline"


def tuned(tiny: Any, base: Path, *overrides: str, resume: bool = False) -> Path:
    settings = (*SHORT, "data.where.speaker=[b]", f"training.initial_pipeline={base}", "training.lora_rank=2")
    return train(DiffusionTask, from_tree(DiffusionConfig, tiny(*settings, *overrides)), resume=resume)


def generate(pipe: SashimiPipeline, speaker: str) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return pipe(2, 4, torch.Generator().manual_seed(0), class_labels=[0, 1], speaker_labels=speaker).audios


def test_a_new_voice_is_learned_by_adapters_alone(tiny: Any, base: Path, tmp_path: Path) -> None:
    run = tuned(tiny, base)
    before = load_file(base / "model" / "diffusion_pytorch_model.safetensors")
    after = load_file(run / "checkpoints" / "step-000004" / "model.safetensors")
    frozen = {name.replace(".base_layer", ""): tensor for name, tensor in after.items() if ".lora_" not in name}
    table = torch.cat([frozen.pop(f"speaker_embedding.{part}") for part in ("known", "added", "null")])
    assert torch.equal(table[[0, 2]], before.pop("speaker_embedding.weight"))
    assert not torch.equal(table[1], table[0])  # where the new voice started
    assert frozen.keys() == before.keys()
    assert all(torch.equal(frozen[name], before[name]) for name in before)
    assert all(tensor.abs().max() > 0 for name, tensor in after.items() if ".lora_B" in name)

    # The pipeline is an ordinary one, and equals the base with the adapter.
    pipe, adapted = SashimiPipeline.from_pretrained(run / "pipeline"), SashimiPipeline.from_pretrained(base)
    assert pipe.model.config.speaker_names == ["a", "b"]
    assert pipe.model.state_dict().keys() == adapted.model.state_dict().keys()
    old = generate(adapted, "a")
    adapted.load_lora_weights(run / "pipeline" / "adapter")
    assert adapted.model.config.speaker_names == ["a", "b"]
    np.testing.assert_allclose(generate(adapted, "b"), generate(pipe, "b"), rtol=1e-3, atol=1e-5)
    adapted.model.disable_adapters()
    np.testing.assert_allclose(generate(adapted, "a"), old, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_equals_an_uninterrupted_one(tiny: Any, base: Path, tmp_path: Path) -> None:
    whole = tuned(tiny, base, f"output_dir={tmp_path / 'whole'}")
    half = tuned(tiny, base, "training.steps=2", f"output_dir={tmp_path / 'half'}")
    tuned(tiny, base, f"output_dir={half}", resume=True)
    for part in ("model/diffusion_pytorch_model", "adapter/pytorch_lora_weights"):
        first, second = (load_file(run / "pipeline" / f"{part}.safetensors") for run in (whole, half))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_rank_of_a_run_cannot_change(tiny: Any) -> None:
    of_rank = [
        from_tree(DiffusionConfig, tiny("training.initial_pipeline=sashimi-digits", f"training.lora_rank={rank}"))
        for rank in (2, 3)
    ]
    check_same_run(of_rank[0], of_rank[0])
    with pytest.raises(UserError, match=r"training\.lora_rank is 3, but the run in .* was started with 2"):
        check_same_run(of_rank[1], of_rank[0])


def test_without_a_rank_all_weights_are_trained(tiny: Any, base: Path) -> None:
    run = tuned(tiny, base, "training.lora_rank=null", "training.steps=2")
    before = load_file(base / "model" / "diffusion_pytorch_model.safetensors")
    after = load_file(run / "pipeline" / "model" / "diffusion_pytorch_model.safetensors")
    before.pop("speaker_embedding.weight")  # it has grown
    assert sum(not torch.equal(before[name], after[name]) for name in before) > 0.9 * len(before)
    assert not (run / "pipeline" / "adapter").exists()


def test_a_run_may_go_on_with_overlapping_pools(tiny: Any, base: Path) -> None:
    run = tuned(tiny, base, "training.lora_rank=null", "training.steps=2", "model.pooling=overlapping")
    weights = load_file(run / "pipeline" / "model" / "diffusion_pytorch_model.safetensors")
    assert any("down_pools.0.weight" in name for name in weights)
    assert SashimiPipeline.from_pretrained(run / "pipeline").model.config.pooling == "overlapping"


def test_known_classes_keep_their_indices(tiny: Any, base: Path) -> None:
    config = from_tree(
        DiffusionConfig,
        tiny(*SHORT, "data.where.label=['1']", "data.where.speaker=[b]", f"training.initial_pipeline={base}"),
    )
    task = DiffusionTask(config, torch.device("cpu"), False)
    batch = task.source.training_batch(0, range(4), 4)
    assert set(batch.labels.tolist()) <= {1, 2}  # 2 is no class
    assert set(batch.speakers.tolist()) <= {1, 2}


def test_classes_that_follow_the_recordings_fit_a_pipeline_with_classes(tiny: Any, base: Path) -> None:
    tree = tiny(*SHORT, "model.class_conditional=null", f"training.initial_pipeline={base}")
    task = DiffusionTask(from_tree(DiffusionConfig, tree), torch.device("cpu"), False)
    assert task.network.config.num_classes == 2


def test_settings_that_contradict_the_initial_pipeline_are_refused(tiny: Any, base: Path, tmp_path: Path) -> None:
    for override, message in (
        ("model.d_model=16", r"model\.d_model is 16, but the initial pipeline has 8: set model\.d_model=8"),
        ("schedule.prediction_type=epsilon", r"set schedule\.prediction_type=v_prediction"),
        ("data.sample_rate=4000", r"set data\.sample_rate=8000"),
        ("data.length=128", r"set data\.length=256"),
        ("model.class_conditional=false", r"set model\.class_conditional=True"),
        ("model.kernel_length=128", r"initial pipeline has None: set model\.kernel_length=null"),
        ("data.speakers=null", r"has speakers: name the field"),
        (f"training.initial_pipeline={tmp_path / 'none'}", "training.initial_pipeline: no pipeline '.*none'"),
        ("training.initial_pipeline=sashimi-piano", "sashimi-piano is an autoregressive .* name a diffusion pipeline"),
        ("training.initial_pipeline=null", r"give one with training\.initial_pipeline"),
    ):
        with pytest.raises(UserError, match=message):
            tuned(tiny, base, override, f"output_dir={tmp_path / 'refused'}")
    assert not (tmp_path / "refused").exists()


def test_the_packaged_config_holds_out_three_of_twenty_recordings(tmp_path: Path) -> None:
    for number in range(20):
        noise = 0.1 * np.random.default_rng(number).standard_normal(800)
        soundfile.write(tmp_path / f"{number // 2}_ann_{number % 2}.wav", noise, 8000)
    overrides = [f"data.path={tmp_path}", f"data.cache_dir={tmp_path / 'cache'}"]
    data = load_config(DiffusionConfig, CONFIGS / "diffusion" / "digits-new-voice.yaml", overrides).data
    train, held_out = (open_split(data, part, data.length, False, data.speakers) for part in ("train", "validation"))
    assert (len(train), len(held_out)) == (17, 3)
    assert train.class_names == list("0123456789")
    assert train.speaker_names == ["ann"]


def test_the_weights_can_move_to_other_classes_without_speakers_at_twice_the_rate(tiny: Any, tmp_path: Path) -> None:
    pooled = (*SHORT, "model.pooling=overlapping", "model.n_layers=[0,1]")
    tree = tiny(*pooled, "model.reverse_shift=0", f"output_dir={tmp_path / 'base'}")
    base = train(DiffusionTask, from_tree(DiffusionConfig, tree)) / "pipeline"
    words = tmp_path / "words"
    words.mkdir()
    for number in range(8):
        tone = 0.3 * np.sin(np.arange(512) * (0.2 + 0.01 * number))
        soundfile.write(words / f"{('up', 'down')[number % 2]}_x_{number // 2}.wav", tone, 16000)
    moved = (
        *(*pooled, f"training.initial_pipeline={base}", "training.transfer=true", "data.speakers=null"),
        *(f"data.path={words}", "data.sample_rate=16000", "data.length=512", "model.waveform_std=null"),
    )
    pool = [2 * SashimiPipeline.from_pretrained(base).model.config.pool[0]]
    tree = tiny(*moved, f"model.pool={pool}", f"output_dir={tmp_path / 'moved'}")
    run = train(DiffusionTask, from_tree(DiffusionConfig, tree))
    network = SashimiPipeline.from_pretrained(run / "pipeline").model
    assert network.config.class_names == ["down", "up"]
    assert network.config.sample_rate == 16000
    assert network.config.num_speakers is None
    assert network.config.reverse_shift == 0  # not in the config of the run: as in the pipeline
    assert network.config.waveform_std == pytest.approx(0.1, rel=0.2)  # measured, about data.normalize_rms
    known = SashimiPipeline.from_pretrained(base).model.step_embedding.hidden.weight
    assert (network.step_embedding.hidden.weight - known).abs().max() < 0.1  # a few steps away

    for override, message in (
        ("model.d_model=16", r"model\.d_model is 16, but the initial pipeline has 8"),
        ("model.pool=[4]", r"expected model\.pool="),
        ("training.lora_rank=2", "set one of them"),
        ("training.initial_pipeline=null", r"name it with training\.initial_pipeline"),
    ):
        with pytest.raises(UserError, match=message):
            DiffusionTask(
                from_tree(DiffusionConfig, tiny(*moved, f"model.pool={pool}", override)), torch.device("cpu"), False
            )
