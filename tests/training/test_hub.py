"""Tests of pushing to the Hugging Face hub, with an API that records calls instead of using the network."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers.pipelines import pipeline_utils
from diffusers.utils import hub_utils
from huggingface_hub import ModelCard

from sashimi_diffusion.commands import push as command
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import WaveNetDenoiser
from sashimi_diffusion.pipelines import SashimiPipeline, hub
from sashimi_diffusion.schedulers import DiffWaveScheduler
from sashimi_diffusion.training.config import from_tree
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.loop import train


class FakeApi:
    """An API of the hub for the user ann, of the organization labs."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.files: dict[str, bytes] = {}
        self.failure: Exception | None = None

    def whoami(self) -> dict[str, Any]:
        if self.failure is not None:
            raise self.failure
        self.calls.append(("whoami",))
        return {"name": "ann", "orgs": [{"name": "labs"}]}

    def create_repo(self, name: str, private: bool, exist_ok: bool, repo_type: str) -> str:
        self.calls.append(("create_repo", name, private, exist_ok, repo_type))
        return f"https://hub/{name}"

    def create_commit(self, name: str, operations: list[Any], commit_message: str, repo_type: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.calls.append(("create_commit", name, repo_type))
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    api = FakeApi()
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    monkeypatch.setattr(hub.huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(hub.huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return api


@pytest.fixture
def config(tiny: Callable[..., dict]) -> Callable[..., DiffusionConfig]:
    settings = ["training.steps=1", "training.validate_every=0", "sampling.num_samples=0"]
    return lambda *overrides: from_tree(DiffusionConfig, tiny(*settings, *overrides))


def test_the_pipeline_of_a_run_is_pushed_with_its_card(
    api: FakeApi, config: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(DiffusionTask, config(), push="tones")
    assert [call[:2] for call in api.calls] == [
        ("whoami",),
        ("create_repo", "ann/tones"),
        ("create_commit", "ann/tones"),
    ]
    stored = {path for path in (tmp_path / "run" / "pipeline").rglob("*") if path.is_file()}
    assert set(api.files) == {path.relative_to(tmp_path / "run" / "pipeline").as_posix() for path in stored}
    card = api.files["README.md"].decode()
    assert 'SashimiPipeline.from_pretrained("ann/tones")' in card
    assert "sashimi-sample --pipeline ann/tones" in card
    weights = "model/diffusion_pytorch_model.safetensors"
    assert api.files[weights] == (tmp_path / "run" / "pipeline" / weights).read_bytes()
    assert "pushed to https://hub/ann/tones" in capsys.readouterr().out

    api.calls.clear()
    assert command.main([str(tmp_path / "run"), "labs/tones", "--private"]) == 0
    assert ("create_repo", "labs/tones", True, True, "model") in api.calls
    assert "pushed to" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a b", "is no name of a repository: expected NAME or OWNER/NAME"),
        ("a/b/c", "is no name of a repository"),
        ("", "is no name of a repository"),
        ("bob/tones", "bob is not ann and none of the organizations of this account"),
    ],
)
def test_a_bad_name_is_refused_before_training(
    api: FakeApi, config: Callable, tmp_path: Path, name: str, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        train(DiffusionTask, config(), push=name)
    assert not (tmp_path / "run").exists()


def test_a_hub_that_cannot_be_used_is_reported_before_training(
    api: FakeApi, config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.failure = ConnectionError("no route\nto host")
    with pytest.raises(UserError, match=r"did not accept the access token or cannot be reached \(no route to host\);"):
        train(DiffusionTask, config(), push="tones")
    monkeypatch.setattr(hub.huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="needs an access token: run `hf auth login`, or set HF_TOKEN"):
        train(DiffusionTask, config(), push="tones")
    monkeypatch.setattr(hub.huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="needs the hub, but HF_HUB_OFFLINE is set"):
        train(DiffusionTask, config(), push="tones")
    assert not (tmp_path / "run").exists()


def test_a_push_that_fails_names_the_command_for_later(
    api: FakeApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    original = api.create_repo

    def fail_later(*arguments: Any, **options: Any) -> str:
        api.failure = OSError("disk quota of the hub")
        return original(*arguments, **options)

    api.create_repo = fail_later  # type: ignore[method-assign]
    assert command.main([str(tmp_path), "tones"]) == 2
    err = capsys.readouterr().err
    assert "has no README.md, the model card: write one" in err
    assert "was not pushed to ann/tones (disk quota of the hub): push it later with" in err


def test_a_pipeline_that_is_saved_and_pushed_keeps_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded = {}
    network = WaveNetDenoiser(
        residual_channels=4, skip_channels=4, n_layers=2, dilation_cycle=2, sample_rate=1000, sample_size=200
    )
    monkeypatch.setattr(pipeline_utils, "create_repo", lambda name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr(pipeline_utils, "load_or_create_model_card", lambda *_, **__: ModelCard("---\n---\nempty"))
    monkeypatch.setattr(
        hub_utils, "upload_folder", lambda folder_path, **_: uploaded.update(card=(Path(folder_path) / "README.md"))
    )
    (tmp_path / "README.md").write_text("mine")
    pipeline = SashimiPipeline(network, DiffWaveScheduler(4))
    pipeline.save_pretrained(tmp_path, push_to_hub=True, repo_id="ann/tones")
    assert uploaded["card"].read_text() == "mine"
    pipeline.save_pretrained(tmp_path / "new", push_to_hub=True, repo_id="ann/tones")
    assert "empty" in uploaded["card"].read_text()


@pytest.mark.parametrize(
    ("name", "expected"), [("empty", "has no model"), ("none", "does not exist"), ("file", "is a file")]
)
def test_a_folder_without_a_model(
    api: FakeApi, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, expected: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert command.main([str(tmp_path / name), "tones"]) == 2
    assert expected in capsys.readouterr().err
    assert api.calls == []
