"""Tests of the check that accelerate has started all requested processes."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from sashimi_diffusion.commands import sample, train
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.launch import require_all_processes
from sashimi_evaluation.commands import evaluate

VARIABLES = ("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "RANK", "LOCAL_RANK", "PMI_RANK")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that sets the given variables of launchers and deletes the others."""

    def set_variables(**variables: str) -> None:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


def test_two_processes_requested_from_accelerate_on_a_cpu_are_an_error(recipe_script: Callable[[str], Any]) -> None:
    script = recipe_script("train_diffwave_sashimi.py")
    code, out, err = script.run(launcher=[*script.ACCELERATE, "--num_processes=2"])
    assert code != 0
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "accelerate launch was asked for several processes but started one" in lines[0]
    assert f"torchrun --nproc-per-node N {script.path} ..." in lines[0]


def test_one_process_is_no_error(recipe_script: Callable[[str], Any]) -> None:
    script = recipe_script("train_diffwave_sashimi.py")
    for options in ([], ["--num_processes=1"]):
        _, _, err = script.run(launcher=[*script.ACCELERATE, *options])
        assert "error: data.path is not set" in err


def test_processes_with_a_rank_are_complete(environment: Callable[..., None]) -> None:
    environment()
    require_all_processes()
    environment(MASTER_ADDR="localhost")
    require_all_processes()
    for rank in ("RANK", "PMI_RANK"):
        environment(ACCELERATE_MIXED_PRECISION="no", MASTER_ADDR="localhost", **{rank: "1"})
        require_all_processes()
    environment(ACCELERATE_MIXED_PRECISION="no", MASTER_ADDR="localhost")
    with pytest.raises(UserError, match="asked for several processes"):
        require_all_processes()


def test_the_advice_names_what_was_started(environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    environment(ACCELERATE_MIXED_PRECISION="no", MASTER_ADDR="localhost")
    monkeypatch.setattr(sys, "argv", ["script.py"])
    for module, started in ((None, "script.py"), (train.__spec__, "-m sashimi_diffusion.commands.train")):
        monkeypatch.setattr(sys.modules["__main__"], "__spec__", module)
        with pytest.raises(UserError, match=f"torchrun --nproc-per-node N {started} ... instead"):
            require_all_processes()


@pytest.mark.parametrize("command", [sample, evaluate])
def test_commands_end_with_exit_code_2(
    environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: Any
) -> None:
    environment(ACCELERATE_MIXED_PRECISION="no", MASTER_ADDR="127.0.0.1")
    monkeypatch.setattr(sys, "argv", ["command.py"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # as of a script
    arguments = [] if command is sample else ["samples", "--reference", "recordings"]
    assert command.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: accelerate launch was asked for several processes")
    assert "torchrun --nproc-per-node N command.py" in err
    assert err.count("\n") == 1
