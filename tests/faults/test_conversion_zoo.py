"""Tests of ``sashimi-convert`` with damaged and hostile files, tensors and options: one line and no folder."""

import io
import os
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sashimi_diffusion.commands.convert import main
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.interop.autoregressive import convert_autoregressive
from sashimi_diffusion.interop.diffwave import ConversionOptions, convert_diffwave
from sashimi_diffusion.interop.pickled_network import read_tensors
from sashimi_evaluation.classifiers import ResNeXtClassifier
from sashimi_evaluation.classifiers.official_checkpoint import convert_classifier, official_name
from tests.faults.damage import DAMAGE, flips
from tests.faults.limited import in_child

CYCLE = ["--dilation-cycle", "2"]


@pytest.fixture(scope="module")
def state(golden) -> dict[str, Tensor]:
    """Return the state dict of a small official WaveNet denoiser."""
    tensors = golden.tensors("d_diffwave/master_wavenet_uncond")
    return {name.removeprefix("sd."): value for name, value in tensors.items() if name.startswith("sd.")}


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Return a function that converts a file and returns the message; nothing may be written."""

    def run(checkpoint: Path, *options: str, out: Path | None = None) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert main([str(checkpoint), str(out or tmp_path / "out"), *options]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert error.rstrip("\n").isprintable()
        assert len(error) < 4000
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return run


def read_or_refuse(path: Path) -> dict[str, Tensor] | None:
    """Return the tensors of a file, or None after a UserError that names the file."""
    try:
        return read_tensors(path)
    except UserError as error:
        message = str(error)
    assert path.name in message
    assert message.isprintable()
    return None


FORMS: dict[str, Callable[[dict[str, Tensor], Path], object]] = {
    "x.pkl": lambda tensors, path: torch.save({"model_state_dict": tensors}, path),
    "old.pkl": lambda tensors, path: torch.save(tensors, path, _use_new_zipfile_serialization=False),
    "x.safetensors": save_file,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FORMS)
def test_a_damaged_file_is_named(
    state: dict[str, Tensor], tmp_path: Path, refused: Callable, name: str, damage: str
) -> None:
    path = tmp_path / name
    FORMS[name](state, path)
    DAMAGE[damage](path)
    expected = {
        "missing": f"{path} does not exist",
        "a link to nothing": f"{path} does not exist",
        "a folder": f"{path} is a folder",
        "a FIFO": f"{path} is a FIFO",
        "a device": f"{path} is a device",
        "a loop of links": f"cannot use {path}",
    }
    assert expected.get(damage, f"{path} is no checkpoint that torch can read (") in refused(path, *CYCLE)


def tiny(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a few small tensors, so that most bytes of a file are not numbers."""
    return {name: state[name] for name in sorted(state, key=lambda name: state[name].numel())[:6]}


def test_a_flipped_bit_in_an_archive_is_refused_or_changes_nothing(state: dict[str, Tensor], tmp_path: Path) -> None:
    tensors, path = tiny(state), tmp_path / "x.pt"
    torch.save(tensors, path)
    content = path.read_bytes()
    # The directory at the end of the archive and the first header have the most consequences.
    places = [(300, 0, None), (100, 0, 80), (200, len(content) - 700, None), (60, len(content) - 22, None)]
    outcomes = set()
    for count, first, last in places:
        for changed in flips(content, count, first, last):
            path.write_bytes(changed)
            loaded = read_or_refuse(path)
            outcomes.add(loaded is None)
            if loaded is not None:
                assert loaded.keys() == tensors.keys()
                assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert outcomes == {True, False}  # some bytes only fill gaps


@pytest.mark.parametrize("name", ["old.pkl", "x.safetensors"])
def test_a_flipped_bit_in_a_file_without_checksums_raises_nothing_else(
    state: dict[str, Tensor], tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    FORMS[name](tiny(state), path)
    outcomes = []
    for changed in flips(path.read_bytes(), 300):
        path.write_bytes(changed)
        outcomes.append(read_or_refuse(path) is None)
    assert sum(outcomes) > 100


def test_truncated_archives_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(tiny(state), path)
    content = path.read_bytes()
    for size in range(0, len(content), len(content) // 60):
        path.write_bytes(content[:size])
        assert read_or_refuse(path) is None


def test_an_archive_without_checksums_is_read(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    loaded = read_tensors(tmp_path / "x.pt")
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_an_archive_that_unpacks_to_much_more_is_refused(tmp_path: Path, refused: Callable) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(50_000_000))
    assert "its parts would unpack to 50,000,000 bytes" in refused(path)


@pytest.mark.parametrize("numel", [301, 2**31 - 1, 2**20])
def test_a_storage_that_claims_more_than_the_file_has_is_refused(tmp_path: Path, refused: Callable, numel: int) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.arange(300.0)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            short, long = b"M" + (300).to_bytes(2, "little"), b"J" + numel.to_bytes(4, "little")
            archive.writestr(name, content.replace(short, long) if name.endswith("data.pkl") else content)
    message = refused(path)
    assert "no checkpoint that torch can read" in message or "does not fit" in message or "not an official" in message


def test_pickles_with_memory_for_terabytes_are_refused(tmp_path: Path) -> None:
    def legacy(numel: int) -> bytes:
        file = io.BytesIO()
        torch.save({"a": torch.arange(300.0)}, file, _use_new_zipfile_serialization=False)
        return file.getvalue().replace(b"M" + (300).to_bytes(2, "little"), b"\x8a\x07" + numel.to_bytes(7, "little"))

    def outcomes() -> list[bool]:
        found = []
        for numel in (2**40, 2**50, 10**9):
            (tmp_path / "old.pkl").write_bytes(legacy(numel))
            found.append(read_or_refuse(tmp_path / "old.pkl") is None)
        return found

    assert in_child(outcomes) == [True] * 3


TENSORS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "meta": (lambda x: x.to("meta"), "has no values (device meta)"),
    "sparse": (lambda x: x.to_sparse(), "is sparse"),
    "quantized": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "is quantized"),
    "terabytes": (lambda x: torch.zeros(1).expand(2**40), "its tensors have 4,398,0"),
    "exabytes": (lambda x: torch.zeros(1).expand(2**20, 2**20, 2**18), "its tensors have"),
    "whole numbers": (lambda x: x.long(), "has numbers of type int64, expected floating-point"),
    "booleans": (lambda x: x > 0, "has numbers of type bool"),
    "complex": (lambda x: x.cfloat(), "has numbers of type complex64"),
    "NaN": (lambda x: torch.full_like(x, float("nan")), "not finite (NaN or infinity) final_conv.0.conv.bias"),
    "one infinity": (lambda x: torch.cat([x[:-1], x.new_tensor([float("inf")])]), "not finite (NaN or infinity) final"),
    "too large": (lambda x: x.double() + 1e308, "not finite (NaN or infinity) final_conv.0.conv.bias"),
    "no numbers": (lambda x: x[:0], "misshapen final_conv.0.conv.bias: (0,)"),
    "no shape": (lambda x: x.sum(), "misshapen final_conv.0.conv.bias: ()"),
}


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # quantized tensors are deprecated
def test_an_unfit_tensor_is_named(state: dict[str, Tensor], tmp_path: Path, refused: Callable, kind: str) -> None:
    make, message = TENSORS[kind]
    torch.save({**state, "final_conv.0.conv.bias": make(state["final_conv.0.conv.bias"])}, tmp_path / "x.pkl")
    assert message in refused(tmp_path / "x.pkl", *CYCLE)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("init_conv.0.conv.weight_v", (60_000, 1, 1)),
        ("fc", (60_000, 60_000)),
        ("residual_layer.fc_t1.weight", (60_000, 1)),
        ("residual_layer.residual_blocks.0.skip_conv.weight_v", (60_000, 1, 1)),
        ("residual_layer.residual_blocks.999999999.skip_conv.weight_v", (1, 1, 1)),
        ("residual_layer.residual_blocks." + "9" * 5000 + ".skip_conv.weight_v", (1, 1, 1)),
        ("x" * 100_000 + "\x1b[31m\n", (1,)),
    ],
)
def test_a_tensor_of_absurd_size_or_name_is_refused(
    state: dict[str, Tensor], tmp_path: Path, refused: Callable, name: str, shape: tuple[int, ...]
) -> None:
    torch.save({**state, name: torch.zeros(1).expand(shape)}, tmp_path / "x.pkl")
    message = refused(tmp_path / "x.pkl", *CYCLE)
    assert "the checkpoint does not fit" in message or "cannot be converted: its tensors have" in message


def test_shapes_that_imply_a_huge_network_are_refused_before_it_is_created(state: dict[str, Tensor]) -> None:
    """One vector implies a network with matrices of its length."""

    def messages() -> list[str]:
        found = []
        for width in (3_000, 30_000, 1_000_000):
            wide = {**state, "init_conv.0.conv.weight_v": torch.zeros(width, 1, 1)}
            with pytest.raises(UserError) as caught:
                convert_diffwave(wide, ConversionOptions(dilation_cycle=2))
            found.append(str(caught.value))
        return found

    for message, expected in zip(
        in_child(messages, memory=300 << 20),
        ["its shapes imply", "the network would have about", "residual_channels is 1000000"],
        strict=True,
    ):
        assert expected in message


@pytest.mark.parametrize("length", [-3, 2**62, 2.5, float("nan")])
def test_a_kernel_length_that_is_none_is_refused(golden, length: float) -> None:
    value = torch.tensor(length)
    for name in ("v3_sashimi-sc09_small", "v4_sashimi-sc09-unet_small"):
        tensors = golden.tensors(f"c_ar/{name}")
        state = {key.removeprefix("sd."): tensor for key, tensor in tensors.items() if key.startswith("sd.")}
        lengths = [key for key in state if key.endswith(("kernel.L", "l_kernel"))]
        if value == 2**62:  # any length has a solution, unless the numbers exceed the range of float64
            convert_autoregressive({**state, lengths[0]: value})
            continue
        with pytest.raises(UserError, match=rf"{lengths[0]}.*expected"):
            convert_autoregressive({**state, lengths[0]: value})


@pytest.fixture
def network_class(monkeypatch: pytest.MonkeyPatch) -> type[nn.Module]:
    """Return a network class that can be pickled, but not imported by name after ``hidden``."""
    module = types.ModuleType("official_code")
    module.Net = type("Net", (nn.Module,), {"__module__": "official_code"})
    monkeypatch.setitem(sys.modules, "official_code", module)
    return module.Net


def save_network(network: nn.Module, path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.save(network, path)
    monkeypatch.delitem(sys.modules, "official_code")
    return path


@pytest.mark.parametrize("kind", ["cycle", "pair", "doubled", "deep"])
def test_networks_without_an_end_are_refused(
    network_class: type[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable, kind: str
) -> None:
    network = network_class()
    network.weight = nn.Parameter(torch.zeros(2))
    if kind == "cycle":
        network.add_module("again", network)
    elif kind == "pair":
        other = network_class()
        other.add_module("left", network)
        network.add_module("right", other)
        network.add_module("left", other)
    else:
        for _ in range(40 if kind == "doubled" else 100):
            outer = network_class()
            outer.add_module("one", network)
            if kind == "doubled":  # 2^40 names
                outer.add_module("two", network)
            network = outer
    path = save_network(network, tmp_path / "network.pth", monkeypatch)
    assert f"{path} cannot be converted: the modules of its network contain each other" in refused(path)


def test_shared_modules_keep_all_their_names(
    network_class: type[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_class()
    network.one = network.two = nn.Linear(2, 2)
    expected = dict(network.state_dict())
    loaded = read_tensors(save_network(network, tmp_path / "network.pth", monkeypatch))
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_a_state_that_is_no_dict_is_refused(
    network_class: type[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable
) -> None:
    network = network_class()
    network.__dict__["_parameters"] = [torch.zeros(2)]
    network.__dict__["_modules"] = {7: network}
    assert "is refused: it contains more than tensors" in refused(
        save_network(network, tmp_path / "network.pth", monkeypatch)
    )


def test_a_plain_pickle_of_other_objects_is_refused(tmp_path: Path, refused: Callable) -> None:
    for content in (Path("x"), 2**80, "text", [[[[]]]], {"state_dict": [1]}, {"a": {"b": torch.zeros(1)}}):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=2))
        assert str(tmp_path / "x.pkl") in refused(tmp_path / "x.pkl")
        torch.save(content, tmp_path / "x.pkl")
        assert str(tmp_path / "x.pkl") in refused(tmp_path / "x.pkl")


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--timesteps", ["1e12", "1000000000000", "100001", "0", "-5", "nan", "9" * 5000, "2.5", ""]),
        ("--beta-end", ["1e308", "1.5", "-0.1", "nan", "inf", "0", "x", "1e400"]),
        ("--beta-start", ["1e308", "-1e-4", "nan", "-inf", "0"]),
        ("--sample-rate", ["0", "-16000", "1000000000000", "16000.5", "\x1b[31m"]),
        ("--length", ["0", "10000000000", "9" * 4000, "-" + "9" * 4000, "1e3"]),
        ("--dilation-cycle", ["0", "25", "1000000000000"]),
        ("--quantization", ["a-law", ""]),
    ],
)
def test_a_number_out_of_range_is_refused(
    state: dict[str, Tensor], tmp_path: Path, refused: Callable, option: str, values: list[str]
) -> None:
    torch.save(state, tmp_path / "x.pkl")
    cycle = [] if option == "--dilation-cycle" else CYCLE
    for value in values:
        assert option in refused(tmp_path / "x.pkl", *cycle, f"{option}={value}")


def test_an_output_folder_that_cannot_be_is_refused(
    state: dict[str, Tensor], tmp_path: Path, refused: Callable
) -> None:
    path = tmp_path / "x.pkl"
    torch.save(state, path)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    places = {
        path: "already exists and is a file",
        path / "out": "is no folder",
        path / "deep" / "out": "is no folder",
        tmp_path / "fifo": "already exists and is a FIFO",
        Path("/dev/null"): "already exists and is a device",
        tmp_path / "loop": "cannot use",
        tmp_path / "loop" / "out": "cannot use",
        tmp_path / "full": "is not empty",
        tmp_path / ("x" * 300): "cannot use",
        Path("/proc/no/such"): "cannot write",
    }
    for place, message in places.items():
        assert message in refused(path, *CYCLE, out=place), place
    content = path.read_bytes()
    assert main([str(path), str(tmp_path / "out"), *CYCLE]) == 0
    assert path.read_bytes() == content


def test_an_empty_folder_is_filled_and_a_new_one_created(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "x.pkl")
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "new" / "folder"):
        assert main([str(tmp_path / "x.pkl"), str(place), *CYCLE]) == 0
    files = {path.relative_to(tmp_path / "empty") for path in (tmp_path / "empty").rglob("*")}
    assert files == {path.relative_to(tmp_path / "new/folder") for path in (tmp_path / "new/folder").rglob("*")}
    assert not list(tmp_path.rglob("*.tmp"))


def test_nan_weights_of_a_classifier_are_named() -> None:
    model = ResNeXtClassifier(depth=11, cardinality=1, base_width=1, widen_factor=1)
    network = {official_name(name): tensor for name, tensor in model.state_dict().items()}
    network["bn_1.running_var"] = torch.full_like(network["bn_1.running_var"], float("nan"))
    with pytest.raises(UserError, match=r"not finite \(NaN or infinity\) bn_1\.running_var"):
        convert_classifier(network)
