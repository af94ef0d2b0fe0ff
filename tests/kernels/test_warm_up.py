"""Tests of compiling kernels before their first launch, and of the width of their accesses, without a GPU."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sashimi_kernels import warm_up

pytest.importorskip("triton", reason="the triton package is not installed")

# Norm and gate, forward and backward, as they are launched for a length; a driver stands in for that of an H100.
LAUNCHES = """
import json, re, sys, torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from sashimi_kernels.triton_backend import gated_residual, layer_norm
from sashimi_kernels.warm_up import CompileOnlyDriver, compile_form, compile_forms, forms_only

class Launcher:
    started = 0
    def __init__(self, source, metadata): pass
    def __call__(self, *arguments): Launcher.started += 1

class LaunchingDriver(CompileOnlyDriver):
    launcher_cls = Launcher
    class utils:
        get_device_properties = staticmethod(lambda device: {"max_shared_mem": 232448})
        load_binary = staticmethod(lambda name, binary, shared, device: (object(), 0, 32, 0, 1024))
        unload_module = staticmethod(lambda module: None)

def operations(features, length):
    x, gates = (torch.zeros(2, h, length, dtype=torch.bfloat16, requires_grad=True) for h in (features, 2 * features))
    parameters = torch.ones(features, requires_grad=True), torch.ones(features, requires_grad=True)
    y = gated_residual(gates, layer_norm(x, *parameters, torch.ones(2, features), 1e-5))
    torch.autograd.grad(y, (x, gates, *parameters), torch.ones_like(y))

if __name__ == "__main__":
    action, length = sys.argv[1], int(sys.argv[2])
    driver.set_active(LaunchingDriver(GPUTarget("cuda", 90, 32)))
    if action == "launch":
        hits = []
        knobs.compilation.listener = lambda cache_hit, **_: hits.append(cache_hit)
        operations(1, length)
        operations(64, length)
        print(json.dumps({"hits": sum(hits), "misses": len(hits) - sum(hits), "started": Launcher.started}))
        sys.exit()
    with forms_only() as forms:
        operations(1, length)
        operations(64, length)
        operations(64, length)
    if action == "warm-up":
        missing = compile_forms(forms, 1)
        print(json.dumps({"forms": len(forms), "missing": missing, "started": Launcher.started}))
    else:
        accesses = {}
        for form in forms:
            found = re.findall(r"(?:ld|st)[.]global\\S*", compile_form(form).asm["ptx"])
            accesses.setdefault(form.kernel, []).extend(found)
        print(json.dumps(accesses))
"""
KERNELS = {
    "_channel_norm_kernel",
    "_channel_norm_backward_kernel",
    "_gated_residual_kernel",
    "_gated_residual_backward_kernel",
}


@pytest.fixture
def launches(tmp_path: Path) -> Callable[..., dict]:
    """Return a function that runs ``LAUNCHES`` without the interpreter, with a Triton cache of this test."""
    script = tmp_path / "launches.py"
    script.write_text(LAUNCHES)

    def run(action: str, length: int) -> dict:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment |= {"TRITON_CACHE_DIR": str(tmp_path / "triton"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(script), action, str(length)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_launches_after_a_warm_up_compile_nothing(launches: Callable) -> None:
    """One feature has forms of its own, because an integer that is 1 becomes a constant."""
    assert launches("warm-up", 1000) == {"forms": 8, "missing": 8, "started": 0}
    assert launches("launch", 1000) == {"hits": 8, "misses": 0, "started": 8}


def test_half_precision_signals_take_16_bytes_per_access(launches: Callable) -> None:
    """The length 1,000 of the center stage is a multiple of 8 and not of 16."""
    accesses = launches("ptx", 1000)
    assert accesses.keys() == KERNELS
    for kernel, found in accesses.items():
        assert {"ld.global.v4.b32", "st.global.v4.b32"} <= set(found), kernel
        assert not any(access.endswith("b16") for access in found), kernel


def test_a_computer_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["warm_up"])
    assert warm_up.main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: no CUDA or ROCm device is present")
    assert printed.err.count("\n") == 1


def test_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(sys, "argv", ["warm_up"])
    assert warm_up.main() == 2
    assert capsys.readouterr().err.startswith("error: TRITON_INTERPRET is set")
