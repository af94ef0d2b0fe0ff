"""Tests of the fingerprints of recordings: a run resumes only with the recordings it was started with."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import soundfile

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.checkpoints import list_checkpoints
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.loop import train
from sashimi_diffusion.training.splits import (
    combined_fingerprint,
    compare_fingerprints,
    fingerprint,
    open_split,
)


@pytest.fixture
def own(recordings: Path, tmp_path: Path) -> Path:
    """Copy the recordings, so that a test may change them."""
    return shutil.copytree(recordings, tmp_path / "own")


def fingerprint_of(config) -> str:
    return fingerprint(open_split(config.data, "train", config.data.length))


def replace_all(folder: Path) -> None:
    """Replace all recordings by others with the same names and lengths."""
    for path in folder.iterdir():
        samples, rate = soundfile.read(path)
        soundfile.write(path, samples[::-1], rate)


def older(text: str) -> str:
    """Return the fingerprint that older versions computed."""
    return text.split("-")[0]


def test_a_fingerprint_depends_on_names_and_contents_but_not_on_folders(tiny_config, own: Path) -> None:
    before = fingerprint_of(tiny_config(f"data.path={own}"))
    assert fingerprint_of(tiny_config()) == before
    replace_all(own)
    replaced = fingerprint_of(tiny_config(f"data.path={own}"))
    assert compare_fingerprints(before, replaced) == "contents"
    (own / "0_a_2.wav").rename(own / "0_a_9.wav")
    assert compare_fingerprints(before, fingerprint_of(tiny_config(f"data.path={own}"))) == "recordings"


def test_the_first_hash_is_the_fingerprint_of_older_versions(tiny_config) -> None:
    config = tiny_config()
    split = open_split(config.data, "train", config.data.length)
    lines = [
        f"{split.files[recording].name} {start} {len(split.clip(item))} {split.labels[item]}"
        for item, (recording, start) in enumerate(split.items)
    ]
    assert older(fingerprint(split)) == hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.mark.parametrize(
    ("stored", "current", "difference"),
    [
        ("a-b", "a-b", "nothing"),
        ("a", "a-b", "unknown"),
        ("a-c", "a-b", "contents"),
        ("c-b", "a-b", "recordings"),
        ("c", "a-b", "recordings"),
        ("", "a-b", "recordings"),
        ("a-b-t", "a-b-t", "nothing"),
        ("a-b", "a-b-t", "nothing"),
        ("a-b-s", "a-b-t", "teacher"),
        ("a-c-s", "a-b-t", "contents"),
    ],
)
def test_comparison_of_fingerprints(stored: str, current: str, difference: str) -> None:
    assert compare_fingerprints(stored, current) == difference


def test_the_fingerprint_of_several_sources() -> None:
    before = combined_fingerprint([("one", "a-b"), ("two", "c-d")])
    assert older(before) == hashlib.sha256(b"one a\ntwo c").hexdigest()  # as in older versions
    assert compare_fingerprints(before, combined_fingerprint([("one", "a-b"), ("two", "c-x")])) == "contents"
    assert compare_fingerprints(before, combined_fingerprint([("one", "a-b"), ("two", "x-d")])) == "recordings"


def test_a_run_does_not_resume_with_replaced_recordings(tiny_config, own: Path) -> None:
    config = tiny_config(f"data.path={own}", "training.steps=4", "sampling.num_samples=0")
    train(DiffusionTask, config)
    replace_all(own)
    with pytest.raises(UserError, match="was made with recordings with other contents than") as caught:
        train(DiffusionTask, config, resume=True)
    assert "step-000004" in str(caught.value)


def test_a_checkpoint_of_an_older_version_resumes_and_says_once_what_was_not_compared(
    tiny_config, own: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = [
        f"data.path={own}",
        "training.checkpoint_every=1",
        "sampling.num_samples=0",
        "training.validate_every=0",
    ]
    run = train(DiffusionTask, tiny_config(*settings, "training.steps=1"))
    forget_contents(list_checkpoints(run)[-1])
    for steps, said in ((2, 1), (3, 0)):
        capsys.readouterr()
        train(DiffusionTask, tiny_config(*settings, f"training.steps={steps}"), resume=True)
        printed = "".join(capsys.readouterr())
        assert printed.count("resumed from ") == 1
        assert printed.count("the contents of the recordings were not compared") == said


def forget_contents(checkpoint: Path) -> None:
    """Change a checkpoint to what an older version has written."""
    path, manifest = checkpoint / "counters.json", checkpoint / "manifest.json"
    counters = json.loads(path.read_text())
    counters["data"] = older(counters["data"])
    path.write_text(json.dumps(counters))
    files = json.loads(manifest.read_text())
    content = path.read_bytes()
    files["counters.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest.write_text(json.dumps(files))


def test_recordings_know_the_content_of_their_files(tiny_config, own: Path) -> None:
    config = tiny_config(f"data.path={own}")
    split = open_split(config.data, "train", config.data.length)
    contents = {split.files[recording].name: split.content(item) for item, (recording, _) in enumerate(split.items)}
    for name, content in contents.items():
        assert content == hashlib.blake2b((own / name).read_bytes(), digest_size=16).hexdigest()
    assert len(set(contents.values())) == len(contents)
