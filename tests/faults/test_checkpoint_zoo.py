"""Every file of a run folder, damaged in every way: a resumed run names it, or is the uninterrupted run."""

import copy
import hashlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from sashimi_diffusion.training.autoregressive.config import AutoregressiveConfig
from sashimi_diffusion.training.autoregressive.task import AutoregressiveTask
from sashimi_diffusion.training.command import Recipe, run_recipe
from sashimi_diffusion.training.config import from_tree
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.loop import train
from sashimi_diffusion.training.yaml_files import apply_overrides, write_yaml
from tests.faults.damage import DAMAGE
from tests.training.conftest import TINY, write_recordings

NEWEST, BEFORE = "checkpoints/step-000006", "checkpoints/step-000004"
FILES = ("model.safetensors", "ema.safetensors", "optimizer.pt", "counters.json", "manifest.json")
WAY_OUT = f"continue from the one before it with --resume-from {BEFORE}"
SETTINGS = [
    *("training.steps=6", "training.checkpoint_every=2", "training.keep_checkpoints=3", "training.validate_every=0"),
    *("sampling.num_samples=0", "optimizer.decay=constant"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished run, the same run with one step more, and recordings."""
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "recordings").mkdir()
    tree = copy.deepcopy(TINY)
    tree["data"] |= {"path": str(write_recordings(folder / "recordings")), "cache_dir": str(folder / "cache")}
    (folder / "tiny.yaml").write_text(write_yaml(tree))
    for name, steps in (("run", 6), ("longer", 7)):
        overrides = [*SETTINGS, f"output_dir={folder / name}", f"training.steps={steps}"]
        train(DiffusionTask, from_tree(DiffusionConfig, apply_overrides(tree, overrides)))
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished run."""
    return shutil.copytree(folder / "run", tmp_path / "run")


@pytest.fixture
def resume(
    folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that continues the copied run by one step, and returns exit code, stdout and stderr."""

    def call(*arguments: str, task: Any = DiffusionTask, config: Any = DiffusionConfig) -> tuple[int, str, str]:
        settings = ["--resume", f"output_dir={run}", "training.steps=7", *arguments]
        monkeypatch.setattr(sys, "argv", ["recipe.py", *settings])
        code = run_recipe(Recipe(task, config, folder, "tiny"), "")
        return code, *capsys.readouterr()

    return call


def check_refused(result: tuple[int, str, str], *expected: str) -> None:
    """Assert that a command ended with one line that has the expected texts, and wrote no other line."""
    code, _, err = result
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for text in expected:
        assert text in err


def state(run: Path) -> dict[str, bytes]:
    """Return the files of a run folder, except the settings that a resumed run may change."""
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def weights(run: Path) -> bytes:
    return (run / "checkpoints/step-000007/model.safetensors").read_bytes()


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF  # a single bit could change a digit of measured.json, which has no checksum
    path.write_bytes(content)


def swapped_with_the_checkpoint_before(path: Path) -> None:
    shutil.copy(path.parent.parent / "step-000004" / path.name, path)


def swapped_with_another_file(path: Path) -> None:
    names = [name for name in FILES if name != path.name]
    shutil.copy(path.with_name(names[0]), path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    **{kind: DAMAGE[kind] for kind in ("half", "empty", "missing", "a folder", "a FIFO", "a loop of links")},
    **{kind: DAMAGE[kind] for kind in ("random bytes", "deep JSON")},
    "flipped": flipped,
    "of the checkpoint before": swapped_with_the_checkpoint_before,
    "another file": swapped_with_another_file,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_a_checkpoint(run: Path, resume: Callable, name: str, damage: str) -> None:
    path = run / NEWEST / name
    DAMAGES[damage](path)
    before = sorted(run.rglob("*"))
    if (name, damage) == ("manifest.json", "of the checkpoint before"):
        path = run / NEWEST / FILES[0]  # the first file that differs from the manifest of another checkpoint
    check_refused(resume(), str(path), WAY_OUT)
    assert sorted(run.rglob("*")) == before


def entry(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def rewrite(run: Path, name: str, content: bytes) -> None:
    """Replace a file of the newest checkpoint and its entry in the manifest."""
    folder = run / NEWEST
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[name] = entry(content)
    (folder / "manifest.json").write_text(json.dumps(manifest))


MANIFESTS: dict[str, tuple[Callable[[dict], Any], str]] = {
    "empty": (lambda manifest: {}, "it does not list model.safetensors"),
    "list": (lambda manifest: [], "it must have the size"),
    "null": (lambda manifest: None, "it must have the size"),
    "number": (lambda manifest: 3, "it must have the size"),
    "only weights": (lambda manifest: {FILES[0]: manifest[FILES[0]]}, "it does not list ema.safetensors"),
    "no optimizer": (lambda manifest: {k: v for k, v in manifest.items() if k != FILES[2]}, "not list optimizer.pt"),
    "no counters": (lambda manifest: {k: v for k, v in manifest.items() if k != FILES[3]}, "not list counters.json"),
    "other file": (lambda manifest: manifest | {"new.pt": entry(b"")}, "lists new.pt, which this version does not"),
    "outside": (lambda manifest: manifest | {"../../x": entry(b"")}, "lists ../../x, which this version does not"),
    "escape": (lambda manifest: manifest | {"\x1b[2J": entry(b"")}, r"lists \x1b[2J, which"),
    "numbers": (lambda manifest: dict.fromkeys(manifest, 3), "it must have the size"),
    "no sum": (lambda manifest: {k: {"bytes": v["bytes"]} for k, v in manifest.items()}, "it must have the size"),
    "text": (lambda manifest: {k: v | {"bytes": str(v["bytes"])} for k, v in manifest.items()}, "bytes instead of"),
    "sum": (lambda manifest: {k: v | {"sha256": None} for k, v in manifest.items()}, "SHA-256 differs"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_is_not_one(run: Path, resume: Callable, case: str) -> None:
    change, expected = MANIFESTS[case]
    path = run / NEWEST / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    check_refused(resume(), str(run / NEWEST), expected, WAY_OUT)


COUNTERS: dict[str, tuple[Any, str]] = {
    **{f"no {name}": ({name: None}, f"the counter {name} is missing") for name in ("step", "seconds", "ema_updates")},
    "unknown": ({"tokens_seen": 3}, "the counter tokens_seen is unknown, because a newer version wrote it"),
    "escape": ({"\x1b": 3}, r"the counter \x1b is unknown"),
    "text": ({"step": "6"}, "the counter step is '6'"),
    "negative": ({"nonfinite_total": -1}, "the counter nonfinite_total is -1"),
    "fraction": ({"ema_updates": 1.5}, "the counter ema_updates is 1.5"),
    "truth": ({"loss_count": True}, "the counter loss_count is True"),
    "huge": ({"ema_updates": 10**30}, "the counter ema_updates is 1000000"),
    "huge float": ({"seconds": 10**400}, "the counter seconds is 10000"),
    "not a number": ({"seconds": float("nan")}, "the counter seconds is nan"),
    "infinite": ({"loss_sum": float("inf")}, "the counter loss_sum is inf"),
    "data": ({"data": 5}, "the counter data is 5"),
    "list": ({"loss_lowest": [1]}, "the counter loss_lowest is [1]"),
    "other step": ({"step": 4}, "was renamed: it is the checkpoint of step 4"),
    "other batch": ({"global_batch": 5}, "was made with 5 examples per step"),
    "no dictionary": ([1, 2], "it contains no counters"),
}


@pytest.mark.parametrize("case", COUNTERS)
def test_counters_that_do_not_fit(run: Path, resume: Callable, case: str) -> None:
    changes, expected = COUNTERS[case]
    stored = json.loads((run / NEWEST / "counters.json").read_text())
    if isinstance(changes, dict):
        stored = {k: v for k, v in (stored | changes).items() if v is not None or k not in changes}
    rewrite(run, "counters.json", json.dumps(stored if isinstance(changes, dict) else changes).encode())
    check_refused(resume(), str(run / NEWEST), expected, "" if case == "other batch" else WAY_OUT)


class Harmful:
    """An object whose unpickling would create a file."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("harmed",)


def saved(value: Any, path: Path) -> bytes:
    torch.save(value, path)
    return path.read_bytes()


def changed_state(stored: dict, change: Callable[[dict], Any]) -> dict:
    stored["state"][0] = change(stored["state"][0])
    return stored


OPTIMIZERS: dict[str, tuple[Callable[[dict], Any], str]] = {
    "empty dictionary": (lambda stored: {}, "it is not the state of adamw"),
    "list": (lambda stored: [1, 2], "it is not the state of adamw"),
    "number": (lambda stored: 3.0, "it is not the state of adamw"),
    "no groups": (lambda stored: stored | {"param_groups": []}, "it is not the state of adamw"),
    "groups of numbers": (lambda stored: stored | {"param_groups": [1, 2, 3]}, "it is not the state of adamw"),
    "one group": (lambda stored: stored | {"param_groups": stored["param_groups"][:1]}, "it is not the state of adamw"),
    "state of numbers": (lambda stored: changed_state(stored, lambda _: 3), "it is not the state of adamw"),
    "no moment": (
        lambda stored: changed_state(stored, lambda s: {k: v for k, v in s.items() if k != "exp_avg_sq"}),
        "exp_avg_sq of a parameter of shape",
    ),
    "other shape": (
        lambda stored: changed_state(stored, lambda s: s | {"exp_avg": torch.zeros(3, 1)}),
        "exp_avg of a parameter of shape",
    ),
    "no tensor": (lambda stored: changed_state(stored, lambda s: s | {"exp_avg": 0.5}), "exp_avg of a parameter"),
    "parts": (lambda stored: {"parts": [stored]}, "optimizer.name=muon, but this command has optimizer.name=adamw"),
    "harmful": (lambda stored: Harmful(), "cannot be read: UnpicklingError"),
}


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_an_optimizer_that_does_not_fit(run: Path, resume: Callable, tmp_path: Path, case: str) -> None:
    change, expected = OPTIMIZERS[case]
    stored = torch.load(run / NEWEST / "optimizer.pt", weights_only=True)
    rewrite(run, "optimizer.pt", saved(change(stored), tmp_path / "state.pt"))
    advice = "or start again in another output_dir" if case == "parts" else WAY_OUT
    check_refused(resume(), str(run / NEWEST / "optimizer.pt"), expected, advice)
    assert not Path("harmed").exists()


@pytest.mark.parametrize("name", FILES[:3])
@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"\xff" * 8 + b"{}", b"\x00" * 1000, b"PK\x03\x04" + b"\x00" * 100, pickle.dumps({})]
)
def test_tensors_that_cannot_be_read(run: Path, resume: Callable, name: str, content: bytes) -> None:
    rewrite(run, name, content)
    check_refused(resume(), str(run / NEWEST / name), "cannot be", WAY_OUT)


@pytest.mark.parametrize("name", FILES[:2])
@pytest.mark.parametrize("damage", ["nan", "other", "one less"])
def test_weights_that_do_not_fit(run: Path, resume: Callable, name: str, damage: str) -> None:
    tensors = safetensors.torch.load_file(run / NEWEST / name)
    first = min(key for key in tensors if key.endswith("weight"))
    if damage == "nan":
        tensors[first].view(-1)[0] = float("nan")
    elif damage == "other":
        tensors[first] = torch.zeros(1, 2, 3)
    else:
        del tensors[first]
    rewrite(run, name, safetensors.torch.save(tensors))
    expected = f"not finite in {first}: the run had diverged" if damage == "nan" else "does not fit this network"
    check_refused(resume(), str(run / NEWEST), expected, WAY_OUT)


@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_another_optimizer(resume: Callable, name: str) -> None:
    expected = f"optimizer.name=adamw, but this command has optimizer.name={name}: resume with optimizer.name=adamw"
    result = resume(f"optimizer.name={name}")
    check_refused(result, f"{NEWEST}/optimizer.pt", expected)
    assert "--resume-from" not in result[2]  # every checkpoint of the run has the same optimizer


def test_checkpoints_of_older_versions_load(run: Path, folder: Path, resume: Callable) -> None:
    """They lack the newer counters, and have Infinity where there is no validation loss."""
    stored = json.loads((run / NEWEST / "counters.json").read_text())
    for name in ("loss_first", "loss_average", "loss_lowest", "metrics"):
        del stored[name]
    rewrite(run, "counters.json", json.dumps(stored | {"plateau_loss": float("inf")}).encode())
    code, _, err = resume()
    assert code == 0, err
    assert weights(run) == weights(folder / "longer")


def test_no_undamaged_checkpoint(run: Path, resume: Callable) -> None:
    for step in (2, 4, 6):
        (run / f"checkpoints/step-00000{step}/manifest.json").unlink()
    check_refused(resume(), "there is no undamaged checkpoint before it: start again in another output_dir")
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("")
    check_refused(resume(), f"{run / 'checkpoints'} is a file: expected the folder of the checkpoints")


def another_recipe(path: Path) -> None:
    recipe = AutoregressiveConfig().model_dump()
    path.write_text(write_yaml(recipe))


RUN_FILES: list[tuple[str, Callable[[Path], object], str]] = [
    *(("config.yaml", DAMAGES[kind], "config.yaml is damaged") for kind in ("half", "empty", "random bytes")),
    ("config.yaml", DAMAGES["a folder"], "config.yaml is damaged: "),
    ("config.yaml", DAMAGES["a loop of links"], "config.yaml"),
    ("config.yaml", DAMAGES["missing"], "config.yaml is missing, but there are checkpoints: restore it, or give the"),
    ("config.yaml", another_recipe, "or has a run of another kind, because it lacks objective, schedule"),
    ("config.yaml", lambda path: path.write_text("seed: 0\nmodel: 3\ndata: 4\n"), "because it lacks objective"),
    *(
        ("measured.json", DAMAGES[kind], "measured.json is damaged: ")
        for kind in ("half", "empty", "flipped", "random bytes", "deep JSON", "a folder")
    ),
    ("measured.json", DAMAGES["a FIFO"], "measured.json is a FIFO: expected the measured values"),
    ("measured.json", lambda path: path.write_text('{"waveform_std": "x"}'), "it must have numbers by their names"),
    ("measured.json", lambda path: path.write_text('{"waveform_std": NaN}'), "it must have numbers by their names"),
    ("measured.json", lambda path: path.write_text("[1]"), "it must have numbers by their names"),
    *(
        ("metrics.jsonl", DAMAGES[kind], "its lines up to step 6 are not those")
        for kind in ("half", "empty", "flipped")
    ),
    *(("metrics.jsonl", DAMAGES[kind], "metrics.jsonl was changed: ") for kind in ("random bytes", "deep JSON")),
    ("metrics.jsonl", DAMAGES["a folder"], "metrics.jsonl is a folder: expected the metrics of a run"),
    ("metrics.jsonl", DAMAGES["a FIFO"], "metrics.jsonl is a FIFO: expected the metrics of a run"),
    ("metrics.jsonl", DAMAGES["a loop of links"], "metrics.jsonl: "),
]


@pytest.mark.parametrize(("name", "damage", "expected"), RUN_FILES)
def test_a_damaged_file_of_a_run_folder(
    run: Path, resume: Callable, name: str, damage: Callable, expected: str
) -> None:
    damage(run / name)
    before = state(run)
    check_refused(resume(), str(run), expected)
    assert state(run) == before


@pytest.mark.parametrize("name", ["measured.json", "metrics.jsonl", "pipeline/model_index.json", "pipeline"])
def test_a_missing_file_that_the_run_replaces(run: Path, folder: Path, resume: Callable, name: str) -> None:
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    code, out, err = resume()
    assert code == 0, err
    assert weights(run) == weights(folder / "longer")
    assert path.exists()
    assert ("metrics.jsonl is missing: it begins anew after step 6" in out) == (name == "metrics.jsonl")


@pytest.mark.parametrize("damage", ["half", "empty", "flipped", "random bytes"])
@pytest.mark.parametrize("name", ["model_index.json", "model/diffusion_pytorch_model.safetensors"])
def test_a_damaged_pipeline_is_replaced(run: Path, folder: Path, resume: Callable, name: str, damage: str) -> None:
    DAMAGES[damage](run / "pipeline" / name)
    code, _, err = resume()
    assert code == 0, err
    assert (run / "pipeline" / name).read_bytes() == (folder / "longer" / "pipeline" / name).read_bytes()


def test_a_torn_last_line_is_no_damage(run: Path, folder: Path, resume: Callable) -> None:
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 7, "lo\xff\x00')
    code, _, err = resume()
    assert code == 0, err
    assert weights(run) == weights(folder / "longer")
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 7


def test_a_folder_without_a_run(run: Path, resume: Callable) -> None:
    shutil.rmtree(run)
    check_refused(resume(), f"there is no run to resume: {run} does not exist; check output_dir")
    run.mkdir()
    check_refused(resume(), f"there is no run to resume in {run}; check output_dir, or start without --resume")
    run.rmdir()
    run.write_text("")
    check_refused(resume(), str(run))


def test_the_run_of_another_recipe(run: Path, resume: Callable) -> None:
    result = resume(task=AutoregressiveTask, config=AutoregressiveConfig)
    check_refused(result, "has a run of another kind, because config.yaml has objective, schedule: resume it with")
