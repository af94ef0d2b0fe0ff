"""Tests of the processes of a run: whether all were started and work together, and which one prints errors."""

import datetime
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from sashimi_diffusion import launch
from sashimi_diffusion.commands import sample, train
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.launch import (
    Launcher,
    SharedError,
    Termination,
    prints_error,
    require_all_processes,
    require_same_count,
    require_whole_models,
)
from sashimi_diffusion.training import accelerator
from sashimi_diffusion.training.config import from_tree
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_evaluation.commands import evaluate

VARIABLES = (
    *("ACCELERATE_DYNAMO_MODE", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"),
    *("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "PMI_RANK", "WORLD_SIZE", "PMI_SIZE", "GROUP_RANK"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"),
)


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
        environment(ACCELERATE_DYNAMO_MODE="default", MASTER_ADDR="localhost", **{rank: "1"})
        require_all_processes()
    # Users export the precision, and schedulers of clusters the address.
    environment(ACCELERATE_MIXED_PRECISION="bf16", MASTER_ADDR="localhost")
    require_all_processes()
    environment(ACCELERATE_DYNAMO_MODE="default", MASTER_ADDR="localhost")
    with pytest.raises(UserError, match="asked for several processes"):
        require_all_processes()


def test_the_advice_names_what_was_started(environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    environment(ACCELERATE_DYNAMO_MODE="default", MASTER_ADDR="localhost")
    monkeypatch.setattr(sys, "argv", ["script.py"])
    for module, started in ((None, "script.py"), (train.__spec__, "-m sashimi_diffusion.commands.train")):
        monkeypatch.setattr(sys.modules["__main__"], "__spec__", module)
        with pytest.raises(UserError, match=f"torchrun --nproc-per-node N {started} ... instead"):
            require_all_processes()


@pytest.mark.parametrize("command", [sample, evaluate])
def test_commands_end_with_exit_code_2(
    environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: Any
) -> None:
    environment(ACCELERATE_DYNAMO_MODE="default", MASTER_ADDR="127.0.0.1")
    monkeypatch.setattr(sys, "argv", ["command.py"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # as of a script
    arguments = [] if command is sample else ["samples", "--reference", "recordings"]
    assert command.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: accelerate launch was asked for several processes")
    assert "torchrun --nproc-per-node N command.py" in err
    assert err.count("\n") == 1


def test_a_launcher_is_known_by_variables_that_nobody_exports(environment: Callable[..., None]) -> None:
    environment(ACCELERATE_MIXED_PRECISION="bf16")
    assert Launcher().process is None
    for variable in ("ACCELERATE_DYNAMO_MODE", "TORCHELASTIC_RUN_ID"):
        environment(**{variable: "default"})
        assert Launcher().process is not None


@pytest.mark.parametrize(
    ("variable", "name"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")]
)
def test_divided_models_are_refused(environment: Callable[..., None], variable: str, name: str) -> None:
    environment(**{variable: "false"})
    require_whole_models()
    environment(**{variable: "true"})
    expected = f"set up for {name}, which divides a model .* models of 25 million parameters, .* only lose by it; use"
    with pytest.raises(UserError, match=expected):
        require_whole_models()


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "PMI_SIZE"])
def test_processes_that_do_not_work_together_are_refused(environment: Callable[..., None], variable: str) -> None:
    environment()
    require_same_count(1)
    environment(**{variable: "2"})
    require_same_count(2)
    with pytest.raises(
        UserError, match=r"has started 2 process\(es\), but Accelerate counts 1, so they would do the same"
    ):
        require_same_count(1)


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Let the test create the first Accelerator of the process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_processes_whose_device_accelerate_does_not_know_are_refused(
    environment: Callable[..., None], fresh_accelerate: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MPI starts two processes, and Accelerate looks for GPUs, where it does not ask MPI."""
    monkeypatch.setattr(accelerator, "_has_only_cpu", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    environment(PMI_SIZE="2", PMI_RANK="1")
    with pytest.raises(UserError, match=r"has started 2 process.*Accelerate counts 1"):
        accelerator.create_accelerator(from_tree(DiffusionConfig, {}))


class Processes:
    """The processes of a machine that torchrun has started: threads that set their variables in turn."""

    def __init__(self, environment: Callable[..., None]) -> None:
        self._environment = environment
        timeout = datetime.timedelta(seconds=5)
        self._store = torch.distributed.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timeout
        )

    def become(self, rank: int, size: int = 2) -> None:
        self._environment(
            TORCHELASTIC_USE_AGENT_STORE="True",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(self._store.port),
            WORLD_SIZE=str(size),
            LOCAL_RANK=str(rank),
        )


def test_an_error_of_all_processes_is_printed_by_the_first(
    environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = Processes(environment)
    processes.become(0)
    assert prints_error(UserError("all have it"))
    processes.become(1)
    assert not prints_error(UserError("all have it"))
    assert not prints_error(SharedError("the first has received it"))
    assert not prints_error(KeyboardInterrupt())

    monkeypatch.setattr(launch, "_PATIENCE", 60)
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(prints_error(UserError("late"))))
    waiting.start()
    processes.become(0)
    assert prints_error(UserError("late"))
    waiting.join(timeout=60)
    assert answers == [False]


def test_an_error_of_a_later_process_is_printed_once(
    environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_PATIENCE", 0.1)
    processes = Processes(environment)
    answers = []
    for rank in (1, 2):
        processes.become(rank, size=3)
        answers.append(prints_error(UserError("only these two have it")))
    assert answers == [True, False]


def test_without_a_store_only_the_first_process_prints(environment: Callable[..., None]) -> None:
    for rank, expected in (("0", True), ("1", False)):
        environment(LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
        assert prints_error(UserError("before the processes know each other")) == expected
    environment()
    assert prints_error(UserError("there is one process"))


@pytest.mark.slow
def test_accelerate_with_fsdp_is_refused(recipe_script: Callable[[str], Any], tmp_path: Any) -> None:
    """Both processes would otherwise end with a traceback, or write the same folder."""
    file = tmp_path / "accelerate.yaml"
    file.write_text("distributed_type: FSDP\nfsdp_config: {}\nnum_processes: 2\nuse_cpu: true\nnum_machines: 1\n")
    script = recipe_script("train_diffwave_sashimi.py")
    launcher = ["-m", "accelerate.commands.launch", f"--config_file={file}"]
    code, _, err = script.run(f"output_dir={tmp_path / 'run'}", launcher=launcher)
    assert code != 0
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "accelerate launch is set up for FSDP" in errors[0]
    assert not (tmp_path / "run").exists()


def test_sigterm_waits_for_the_end_of_a_step() -> None:
    termination = Termination()
    with termination.awaited():
        assert not termination.is_due()
        os.kill(os.getpid(), signal.SIGTERM)
        assert not termination.obeyed
        assert termination.is_due()
        assert termination.obeyed
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_interrupts_a_run_that_has_not_begun() -> None:
    with Termination().awaited(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_an_ignored_sigterm_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with (termination := Termination()).awaited():
            os.kill(os.getpid(), signal.SIGTERM)
            assert not termination.is_due()
    finally:
        signal.signal(signal.SIGTERM, before)
