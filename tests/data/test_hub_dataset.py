"""Tests of Hugging Face data sets: on disk, as folders of data files, and by an id without a network."""

import io
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sashimi_diffusion.data import cache as cache_module
from sashimi_diffusion.data import hub_dataset
from sashimi_diffusion.data.hub_dataset import IF_PRESENT, HubDataset, SplitNames
from sashimi_diffusion.errors import UserError

huggingface_hub = pytest.importorskip("huggingface_hub")
datasets = pytest.importorskip("datasets", reason="needs the package datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def noise(seed: int, samples: int = 60, channels: int = 1) -> np.ndarray:
    pcm = np.random.default_rng(seed).integers(-8000, 8000, (samples, channels))
    return (pcm / 2**15).astype(np.float32)


def wav(samples: np.ndarray, rate: int = 16000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV")
    return file.getvalue()


def rows(count: int, first: int = 0) -> list[dict]:
    return [
        {
            "audio": {"bytes": wav(noise(number)), "path": f"{number}.wav"},
            "label": "ab"[number % 2],
            "speaker": number % 3,
            "scores": [0.5],
        }
        for number in range(first, first + count)
    ]


def write(folder: Path, name: str, table: list[dict]) -> None:
    folder.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(table), folder / f"{name}.parquet")


@pytest.fixture
def words(tmp_path: Path) -> Path:
    write(tmp_path / "words", "train", rows(20))
    return tmp_path / "words"


def test_rows_of_parquet_files_are_recordings(words: Path) -> None:
    dataset = HubDataset(str(words), "all", length=60, labels=IF_PRESENT, speakers="speaker")
    assert (dataset.class_names, dataset.speaker_names) == (["a", "b"], ["0", "1", "2"])
    for index in range(20):
        np.testing.assert_array_equal(dataset.clip(index), noise(index)[:, 0])
        assert (dataset.labels[index], dataset.speakers[index]) == (index % 2, index % 3)
    assert HubDataset(str(words), "all", length=60).class_names is None


@pytest.mark.parametrize("saved_splits", [False, True])
def test_a_saved_data_set_is_that_of_its_files(words: Path, tmp_path: Path, saved_splits: bool) -> None:
    """``save_to_disk`` of a data set with or without splits, with the type of audio."""
    loaded = datasets.load_dataset(str(words), cache_dir=str(tmp_path / "datasets"))
    loaded = loaded.cast_column("audio", datasets.Audio(decode=False))
    (loaded if saved_splits else loaded["train"]).save_to_disk(str(tmp_path / "saved"))
    for split in ("train", "validation"):
        saved = HubDataset(str(tmp_path / "saved"), split, length=60, labels="label")
        files = HubDataset(str(words), split, length=60, labels="label")
        assert [file.name for file in saved.files] == [file.name for file in files.files]
        assert saved.fingerprint() == files.fingerprint()


def test_a_folder_of_audio_files_has_its_sub_folders_as_classes(tmp_path: Path, record) -> None:
    for label in ("cat", "dog"):
        for number in range(4):
            record(tmp_path / "audio" / "train" / label / f"{number}.wav", channels=2)
    record(tmp_path / "audio" / "test" / "dog" / "9.wav", channels=2)
    dataset = HubDataset(str(tmp_path / "audio"), "test", length=100, labels=IF_PRESENT, channels=2)
    assert (dataset.class_names, dataset.labels.tolist()) == (["cat", "dog"], [1])
    np.testing.assert_array_equal(dataset.clip(0), record(tmp_path / "audio" / "test" / "dog" / "9.wav", channels=2).T)
    assert len(HubDataset(str(tmp_path / "audio"), "train", length=100)) == 7  # one of eight is for validation


def test_own_splits_are_used_and_missing_ones_are_shares(words: Path) -> None:
    options = {"length": 60, "labels": "label", "splits": (0.5, 0.25, 0.25)}
    assert [len(HubDataset(str(words), part, **options)) for part in ("train", "validation", "test")] == [12, 4, 4]
    write(words, "validation", rows(3, first=20))
    assert [len(HubDataset(str(words), part, **options)) for part in ("train", "validation", "test")] == [16, 3, 4]
    assert [file.parent.name for file in HubDataset(str(words), "validation", **options).files] == ["validation"] * 3
    assert len(HubDataset(str(words), "validation", holdout={"speaker": [2]}, length=60)) == 6
    assert len(HubDataset(str(words), "all", where={"label": ["b"]}, length=60)) == 11


def test_named_splits(words: Path, tmp_path: Path) -> None:
    write(words, "test", rows(5, first=30))
    loaded = datasets.load_dataset(str(words), cache_dir=str(tmp_path / "datasets"))
    loaded = datasets.DatasetDict({"first": loaded["test"], "second": loaded["train"]})
    loaded.save_to_disk(str(tmp_path / "saved"))
    names = SplitNames(train="first", validation="second")
    sizes = {"train": 4, "validation": 20, "test": 1}  # a share of the training split
    for split, size in sizes.items():
        assert len(HubDataset(str(tmp_path / "saved"), split, length=60, split_names=names)) == size
    with pytest.raises(UserError, match=r"the settings name the split 'train', but the splits are first, second"):
        HubDataset(str(tmp_path / "saved"), length=60)


def test_shares_are_stratified_repeatable_and_do_not_move(words: Path) -> None:
    options = {"length": 60, "labels": "label", "splits": (0.8, 0.2, 0.0)}
    before = HubDataset(str(words), "validation", **options)
    assert Counter(before.labels.tolist()) == {0: 2, 1: 2}
    write(words, "train", rows(22))
    after = {file.name for file in HubDataset(str(words), "validation", **options).files}
    assert len({file.name for file in before.files} - after) <= 1


def test_a_changed_data_set_is_decoded_again(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    HubDataset(str(words), "all", length=60)
    with monkeypatch.context() as patch:
        patch.setattr(hub_dataset, "decode_content", None)
        HubDataset(str(words), "train", length=60)
    write(words, "train", rows(20, first=1))
    np.testing.assert_array_equal(HubDataset(str(words), "all", length=60).clip(0), noise(1)[:, 0])


def test_columns_of_bytes_and_of_paths(tmp_path: Path, record) -> None:
    expected = record(tmp_path / "a.wav")
    content = (tmp_path / "a.wav").read_bytes()
    write(tmp_path / "bytes", "train", [{"sound": content}])
    write(tmp_path / "paths", "train", [{"audio": str(tmp_path / "a.wav")}])
    for name in ("bytes", "paths"):
        np.testing.assert_array_equal(HubDataset(str(tmp_path / name), "all", length=100).clip(0), expected)
    record(tmp_path / "a.wav", 50)  # a file beside the table changes without it
    assert HubDataset(str(tmp_path / "paths"), "all", length=100).clip_length(0) == 50


def test_bad_rows_are_named(words: Path) -> None:
    damaged = [{"bytes": b"no audio", "path": "x.wav"}, None, {"bytes": None, "path": str(words / "none.wav")}]
    write(words, "train", rows(5) + [row | {"audio": cell} for row, cell in zip(rows(3), damaged, strict=True)])
    with pytest.raises(UserError, match=r"3 of 8 audio files .*cannot be used:") as caught:
        HubDataset(str(words), "all", length=60)
    for name in ("train/row 5: not audio", "train/row 6: no audio", "train/row 7: unreadable"):
        assert name in str(caught.value)
    with pytest.warns(UserWarning, match="going on without them"):
        assert len(HubDataset(str(words), "all", length=60, skip_bad_files=True)) == 5
    write(words, "train", [*rows(4), rows(1)[0] | {"label": None}])
    with pytest.raises(UserError, match="train/row 4: label has no value"):
        HubDataset(str(words), "all", length=60, labels="label")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"audio_column": "audo"}, "data.audio_column is 'audo', but the columns are audio, label, speaker, scores"),
        ({"audio_column": "speaker"}, "'speaker', but its values (int64) are no audio files"),
        ({"labels": "lable"}, "'lable', but the columns are audio, label, speaker, scores; did you mean 'label'?"),
        ({"labels": "scores"}, "the column 'scores' has values of the type List"),
        ({"speakers": "voice"}, "'voice', but the columns are"),
        ({"where": {"label": ["c"]}}, "where asks for label 'c', but there are a, b"),
        ({"split_names": SplitNames(train="trian")}, "'trian', but the splits are train; did you mean 'train'?"),
        ({"split_names": SplitNames(validation="train")}, "are both 'train'"),
        ({"subset": "nothing"}, "cannot read"),
    ],
)
def test_settings_that_cannot_be_used(words: Path, options: dict, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        HubDataset(str(words), "all", length=60, **options)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_column_of_audio_the_columns_are_listed(tmp_path: Path) -> None:
    write(tmp_path / "texts", "train", [{"text": "a", "number": 1}])
    with pytest.raises(UserError, match=r"no column of audio: .* text \(string\), number \(int64\)"):
        HubDataset(str(tmp_path / "texts"), "all")
    write(tmp_path / "two", "train", [{"one": b"a", "two": b"b"}])
    with pytest.raises(UserError, match="more than one column of audio: set data"):
        HubDataset(str(tmp_path / "two"), "all")


def test_an_id_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments, **options):
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset_builder", offline)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    with pytest.raises(UserError) as caught:
        HubDataset("owner/name")
    assert str(caught.value) == (
        "data.path owner/name is no folder, and no data set of this id can be loaded from the hub (ConnectionError: "
        "Couldn't reach 'owner/name' on the Hub): check the path, or the id and the network"
    )
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for path, problem in (("none", "does not exist"), ("file", "is not a folder"), ("empty", "")):
        monkeypatch.undo()
        monkeypatch.setenv("SASHIMI_CACHE", str(tmp_path / "cache"))
        with pytest.raises(UserError, match=f"{path}.*{problem}"):
            HubDataset(str(tmp_path / path))


def test_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library tries six times, but not while it is offline; then it uses its cache."""
    asked, offline = [], []

    def ask(self: object, name: str, timeout: float) -> None:
        asked.append(name)
        raise OSError("no network")

    def load(*_: object, **options: object) -> None:
        offline.append(huggingface_hub.constants.HF_HUB_OFFLINE)
        raise ConnectionError("not in the cache")

    before = huggingface_hub.constants.HF_HUB_OFFLINE
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", ask)
    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    with pytest.raises(UserError, match="not in the cache"):
        HubDataset("owner/name")
    assert (asked, offline, huggingface_hub.constants.HF_HUB_OFFLINE) == (["owner/name"], [True], before)


@pytest.mark.parametrize("path", ["hf/none", "none", "hf/none/deep", "./none"])
def test_a_mistyped_local_path_is_answered_without_the_hub(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hf").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", None)
    monkeypatch.setattr(datasets, "load_dataset_builder", None)
    with pytest.raises(
        UserError, match=f"data.path {path} does not exist: expected a folder of a Hugging Face data set"
    ):
        HubDataset(path)


def test_a_saved_data_set_has_no_configurations(words: Path, tmp_path: Path) -> None:
    datasets.Dataset(parquet.read_table(words / "train.parquet")).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=r"data\.subset is 'large', but .*saved was written by save_to_disk"):
        HubDataset(str(tmp_path / "saved"), "all", length=60, subset="large")
    with pytest.raises(UserError, match=r"cannot read .*words as a Hugging Face data set .*large"):
        HubDataset(str(words), "all", length=60, subset="large")


def test_without_the_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.delitem(sys.modules, "sashimi_diffusion.data.hub_files", raising=False)
    monkeypatch.delattr(sys.modules["sashimi_diffusion.data"], "hub_files", raising=False)
    with pytest.raises(UserError, match=r"data\.kind=hf_dataset needs datasets: pip install datasets"):
        HubDataset("owner/name")


def test_a_damaged_memory_of_hashes_is_replaced(words: Path, cache_dir: Path, capsys) -> None:
    HubDataset(str(words), "all", length=60)
    (memo,) = cache_dir.glob("*.rows.json")
    memo.write_bytes(memo.read_bytes()[:-5])
    HubDataset(str(words), "all", length=60)
    assert "the data set is read again" in capsys.readouterr().err
    assert cache_module.read_cache_record(memo) is not None


def test_labels_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """Parquet files may have text that is not UTF-8, and the names of classes lone surrogates."""
    table = pyarrow.Table.from_pylist(rows(2)).drop_columns("label")
    bad = pyarrow.array([b"a", b"\xff"]).cast(pyarrow.string(), safe=False)
    saved = datasets.Dataset(table.append_column("label", bad))
    saved.save_to_disk(str(tmp_path / "bytes"))
    with pytest.raises(UserError, match="the column 'label' has values that are not UTF-8 text"):
        HubDataset(str(tmp_path / "bytes"), "all", length=60, labels="label")
    named = datasets.Dataset(table.append_column("label", pyarrow.array([0, 1])))
    named = named.cast_column("label", datasets.ClassLabel(names=["a", "\ud800"]))
    named.save_to_disk(str(tmp_path / "names"))
    with pytest.raises(UserError, match=r"row 1: its label is not valid text \(\\ud800\)"):
        HubDataset(str(tmp_path / "names"), "all", length=60, labels="label")
