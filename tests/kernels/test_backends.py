"""Tests of the selection of a backend and of the choices that a benchmark stores."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sashimi_kernels as kernels
from sashimi_kernels import backends, choices
from sashimi_kernels.backends import select_backend
from sashimi_kernels.errors import BackendUnavailableError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
OPERATION = "diagonal_kernel"


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Remove measured choices, the environment variable and cached values, and return the empty cache folder."""
    monkeypatch.setenv("SASHIMI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(choices, "SHIPPED_CHOICES", tmp_path / "shipped.json")
    (tmp_path / "shipped.json").write_text("{}")
    monkeypatch.delenv("SASHIMI_KERNELS", raising=False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for cached_function in (choices._choices, choices._measured_choice, choices._gpu_obstacle):
        cached_function.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate an H100 by its name and compute capability."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(backends, "_TRITON_INSTALLED", True)
    monkeypatch.delenv("TRITON_INTERPRET")


def chosen(backend: str, device: torch.device, **options: object) -> str:
    return select_backend(backend, device, OPERATION, **options).__name__.split(".")[-1]


def test_auto_on_a_cpu_is_torch_even_with_the_triton_interpreter() -> None:
    assert chosen("auto", CPU) == "torch_backend"
    assert chosen("auto", torch.device("mps")) == "torch_backend"


def test_the_environment_variable_applies_only_to_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SASHIMI_KERNELS", "reference")
    assert chosen("auto", CPU) == "reference"
    assert chosen("torch", CPU) == "torch_backend"
    monkeypatch.setenv("SASHIMI_KERNELS", "auto")
    assert chosen("auto", CPU) == "torch_backend"


def test_auto_on_a_gpu_is_triton_if_it_can_run(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen("auto", CUDA) == "triton_backend"
    assert chosen("auto", CUDA, dtype=torch.complex64) == "triton_backend"
    assert chosen("auto", CUDA, dtype=torch.float64) == "torch_backend"
    assert chosen("auto", CUDA, dtype=torch.complex128) == "torch_backend"
    monkeypatch.setattr(backends, "_TRITON_INSTALLED", False)
    assert chosen("auto", CUDA) == "torch_backend"


def test_auto_on_an_old_gpu_is_torch(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert chosen("auto", CUDA) == "torch_backend"
    with pytest.raises(BackendUnavailableError, match=r"compute capability 7\.5 and Triton needs 8\.0"):
        select_backend("triton", CUDA, OPERATION)


def test_auto_on_a_gpu_does_not_use_the_triton_interpreter(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert chosen("auto", CUDA) == "torch_backend"
    assert chosen("triton", CUDA) == "triton_backend"


def test_auto_uses_the_measured_choice(gpu: None) -> None:
    choices.save_choices(
        "NVIDIA H100", {"diagonal_kernel float32 4000": "torch", "diagonal_kernel float16 4000": "triton"}
    )
    assert chosen("auto", CUDA, length=3000) == "torch_backend"
    assert chosen("auto", CUDA, dtype=torch.complex64, length=8000) == "torch_backend"
    assert chosen("auto", CUDA, length=8001) == "triton_backend"
    assert chosen("auto", CUDA, dtype=torch.float16, length=4000) == "triton_backend"
    assert chosen("triton", CUDA, length=3000) == "triton_backend"


@pytest.mark.parametrize("through_environment", [False, True])
@pytest.mark.parametrize(
    ("backend", "device", "installed", "interpret", "reason"),
    [
        ("triton", CPU, False, "1", r"triton package is not installed.*pip install triton"),
        ("triton", CPU, True, "0", r"needs a CUDA or ROCm device.*TRITON_INTERPRET=1"),
        ("triton", torch.device("mps"), True, "1", r"needs a CUDA or ROCm device"),
        ("cuda", CPU, True, "1", r"this version has reference, torch, triton"),
    ],
)
def test_the_error_names_why_a_backend_cannot_run(
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    device: torch.device,
    installed: bool,
    interpret: str,
    reason: str,
    through_environment: bool,
) -> None:
    monkeypatch.setattr(backends, "_TRITON_INSTALLED", installed)
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    if through_environment:
        monkeypatch.setenv("SASHIMI_KERNELS", backend)
    with pytest.raises(BackendUnavailableError, match=f"{backend!r} cannot run on {device}: .*{reason}") as caught:
        select_backend("auto" if through_environment else backend, device, OPERATION)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_triton_does_not_take_float64(dtype: torch.dtype) -> None:
    pytest.importorskip("triton", reason="the triton package is not installed")
    with pytest.raises(BackendUnavailableError, match="not in float64"):
        select_backend("triton", CPU, OPERATION, dtype)


def test_every_backend_has_every_operation() -> None:
    pytest.importorskip("triton", reason="the triton package is not installed")
    modules = [select_backend(name, CPU, OPERATION) for name in kernels.available_backends()]
    operations = [set(module.__all__) for module in modules]
    assert operations[0] == operations[1] == operations[2]
    assert operations[0] <= set(kernels.__all__)


def test_a_backend_is_imported_when_it_is_selected() -> None:
    code = """
import sys, torch, sashimi_kernels
sashimi_kernels.backends.select_backend("auto", torch.device("cpu"), "diagonal_kernel")
assert not {"triton", "torch._dynamo", "sashimi_kernels.triton_backend"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile_traces_the_selection(dynamic: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    log_a = -torch.rand(2, 3, generator=generator).to(torch.complex128)
    coefficients = torch.randn(1, 2, 3, dtype=torch.complex64, generator=generator)

    def scaled(coefficients: Tensor, u: Tensor) -> Tensor:
        return u * kernels.diagonal_kernel(log_a, coefficients, u.shape[-1])

    compiled = torch.compile(scaled, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for length in (16, 21):
        u = torch.randn(1, 2, length, generator=generator)
        torch.testing.assert_close(compiled(coefficients, u), scaled(coefficients, u))


def test_torch_compile_traces_the_selection_on_a_gpu(gpu: None) -> None:
    choices.save_choices("NVIDIA H100", {"diagonal_kernel float32 1000": "torch"})

    log_a, coefficients = torch.full((2, 1, 1), -0.5, dtype=torch.complex128)

    def selected(u: Tensor) -> Tensor:
        module = select_backend("auto", CUDA, OPERATION, u.dtype, u.shape[-1])
        return u + module.diagonal_kernel(log_a, coefficients[None], u.shape[-1])

    compiled = torch.compile(selected, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (16, 21):
        torch.testing.assert_close(compiled(torch.ones(length)), selected(torch.ones(length)))


@pytest.mark.parametrize(
    ("samples", "measured"),
    [(1, 1000), (2000, 1000), (2001, 4000), (8000, 4000), (16000, 16000), (10**6, 1024000), (10**9, 1024000)],
)
def test_sizes_use_the_nearest_measurement(samples: int, measured: int) -> None:
    assert choices.nearest_size(samples) == measured


def test_the_size_is_that_of_the_batch(gpu: None) -> None:
    choices.save_choices("NVIDIA H100", {f"{OPERATION} float32 {size}": "torch" for size in (1000, 16000)})
    assert chosen("auto", CUDA, length=1000) == "torch_backend"
    assert chosen("auto", CUDA, length=1000, batch=4) == "triton_backend"
    assert chosen("auto", CUDA, length=1000, batch=16) == "torch_backend"


def test_the_shipped_choices_are_used_before_a_measurement(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {f"{OPERATION} float32 {size}": "torch" for size in (1000, 4000)}
    choices.save_shipped_choices("NVIDIA H100 80GB HBM3", table, "abc1234", choices.SHIPPED_CHOICES)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert chosen("auto", CUDA, length=1000) == "torch_backend"
    assert chosen("auto", CUDA, length=16000) == "triton_backend"
    choices.save_choices("NVIDIA H100 PCIe", {f"{OPERATION} float32 1000": "triton"})
    assert chosen("auto", CUDA, length=1000) == "triton_backend"  # the user's own measurement
    assert chosen("auto", CUDA, length=4000) == "torch_backend"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    choices._measured_choice.cache_clear()
    assert chosen("auto", CUDA, length=4000) == "triton_backend"


def test_shipped_choices_have_an_entry_per_card(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    for name, key in (("NVIDIA H100 NVL", "a"), ("NVIDIA H100", "b"), ("NVIDIA H200", "c"), ("Card 1", "d")):
        choices.save_shipped_choices(name, {key: "torch"}, "abc1234", path)
    choices.save_shipped_choices("Card 1 large", {"e": "triton"}, "abc1234", path)
    entries = json.loads(path.read_text())
    assert list(entries) == ["Card 1", "Card 1 large", "NVIDIA H100", "NVIDIA H200"]
    assert set(entries["NVIDIA H100"]) == {"date", "commit", "versions", "choices"}
    assert entries["NVIDIA H100"]["commit"] == "abc1234"
    assert torch.__version__ in entries["NVIDIA H100"]["versions"]
    assert choices.load_shipped_choices("NVIDIA H100 PCIe", path) == {"b": "torch"}
    assert choices.load_shipped_choices("Card 1", path) == {"d": "torch"}
    assert choices.load_shipped_choices("Card 1 large, second", path) == {"e": "triton"}
    assert choices.load_shipped_choices("NVIDIA A100", path) == {}


def test_the_file_of_the_package_is_valid() -> None:
    path = Path(choices.__file__).with_name("measured_choices.json")
    keys = {f"{dtype} {size}" for dtype in ("float32", "float16", "bfloat16") for size in choices.SIZES}
    for card, entry in json.loads(path.read_text()).items():
        assert set(entry) == {"date", "commit", "versions", "choices"}, card
        for key, backend in entry["choices"].items():
            operation, _, rest = key.partition(" ")
            assert hasattr(kernels, operation), key
            assert rest in keys, key
            assert backend in choices.CANDIDATES, key


def test_the_file_of_the_package_is_installed() -> None:
    project = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert "measured_choices.json" in project


def test_choices_are_added_to_the_file(empty_cache: Path) -> None:
    assert choices.load_choices() == {}
    choices.save_choices("A", {"x float32 1000": "torch", "y float32 1000": "torch"})
    path = choices.save_choices("A", {"x float32 1000": "triton"})
    choices.save_choices("B", {"x float32 1000": "torch"})
    expected = {"A": {"x float32 1000": "triton", "y float32 1000": "torch"}, "B": {"x float32 1000": "torch"}}
    stored = json.loads(path.read_text())
    assert choices.load_choices() == expected
    assert len(stored.pop("checksum")) == 64
    assert stored == expected
    assert list(empty_cache.iterdir()) == [path]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"A": {"x float32 1000": "cuda"}}', '{"A": 3}', "\xff"])
def test_a_damaged_file_is_reported_and_created_again(empty_cache: Path, gpu: None, content: str) -> None:
    empty_cache.mkdir()
    choices.choices_file().write_bytes(content.encode("latin-1"))
    with pytest.warns(UserWarning, match=r"kernel-choices\.json is ignored \(.*creates it again") as caught:
        names = [chosen("auto", CUDA, length=length) for length in (1000, 4000)]
    assert names == ["triton_backend", "triton_backend"]
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    with pytest.warns(UserWarning, match="is ignored"):
        choices.save_choices("A", {"x float32 1000": "torch"})
    assert choices.load_choices() == {"A": {"x float32 1000": "torch"}}


def test_a_failed_write_leaves_the_older_file(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = choices.save_choices("A", {"x float32 1000": "torch"})

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", fail)
    with pytest.raises(OSError, match="No space left"):
        choices.save_choices("A", {"x float32 1000": "triton"})
    assert list(empty_cache.iterdir()) == [path]
    assert choices.load_choices() == {"A": {"x float32 1000": "torch"}}


def test_the_file_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SASHIMI_CACHE", "/somewhere")
    assert choices.choices_file() == Path("/somewhere/kernel-choices.json")
    monkeypatch.delenv("SASHIMI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert choices.choices_file() == Path("/xdg/sashimi-diffusion/kernel-choices.json")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert choices.choices_file() == Path("~/.cache/sashimi-diffusion/kernel-choices.json").expanduser()
