"""A process that is killed, or whose disk is full, at any file operation loses nothing that was complete.

Each test records the file operations of a command. It then runs the command once for each of them and ends it there,
checks what is left, runs it again as its message says, and compares the result with that of an undisturbed run. A
process that is killed may leave hidden files with the ending .tmp, which nothing reads.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
from safetensors.torch import load_file

from sashimi_diffusion.training.checkpoints import list_checkpoints, verify_checkpoint
from tests.faults.command_zoo_world import make_world
from tests.faults.file_operations import CRASHED
from tests.faults.forked import Call, Result, children
from tests.faults.forked_server import copy_folder

NAMES = "--pattern={label}_{speaker}_{index}"


@dataclass(frozen=True)
class Scenario:
    """A command and what it must leave.

    Args:
        call: the command.
        needs: files and folders of the world that it needs.
        check: function of the working folder after a crash; it raises AssertionError if something half-written would
            be taken for whole.
        outcome: function of the working folder that returns what must be equal at the end.
        again: the arguments that are added to the second call.
        advised: arguments that a refusal of the second call may name; they are then added as well.
        step: a fault is injected at every ``step``-th file operation.
    """

    call: Call
    needs: tuple[str, ...]
    check: Callable[[Path], None]
    outcome: Callable[[Path], Any]
    again: tuple[str, ...] = ()
    advised: tuple[str, ...] = ()
    step: int = 1


def check_run(work: Path) -> None:
    """Check that the newest checkpoint of a run is whole, and that its pipeline loads if it exists."""
    run = work / "new-run"
    # An older one may be incomplete if the process ended while it removed it.
    for checkpoint in list_checkpoints(run)[-1:]:
        verify_checkpoint(checkpoint)
    for weights in (run / "pipeline").rglob("*.safetensors"):
        load_file(weights)
    for config in (run / "pipeline").rglob("*.json"):
        json.loads(config.read_text())


def outcome_of_run(work: Path) -> Any:
    """Return the metrics without times, and the hashes of the last weights and of the pipeline."""
    run = work / "new-run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in line.items() if not key.startswith("seconds")} for line in lines]
    weights = [list_checkpoints(run)[-1] / "model.safetensors", *sorted((run / "pipeline").rglob("*.safetensors"))]
    # An older checkpoint may stay if the process ended before it was removed.
    return metrics, [_digest(path) for path in weights], list_checkpoints(run)[-1].name


def check_samples(work: Path) -> None:
    """Check that every clip that samples.json calls finished is whole."""
    record = work / "new" / "samples.json"
    if record.exists():
        content = json.loads(record.read_text())
        files = [clip["file"] for clip in content["samples"] if clip.get("file")]
        if content.get("complete", True):
            for name in files:
                assert soundfile.info(work / "new" / name).frames > 0


def outcome_of_samples(work: Path) -> Any:
    """Return the hashes of all clips, and the record without times and the command."""
    content = json.loads((work / "new" / "samples.json").read_text())
    kept = {key: value for key, value in content.items() if key not in ("command", "samples_per_second")}
    files = [path for path in sorted((work / "new").iterdir()) if not _is_temporary(path)]
    return kept, [(path.name, _digest(path)) for path in files if path.name != "samples.json"]


def check_evaluation(work: Path) -> None:
    """Check that the reports are absent or whole."""
    if (work / "evaluation.json").exists():
        json.loads((work / "evaluation.json").read_text())
    if (work / "new.html").exists():
        assert (work / "new.html").read_text().rstrip().endswith("</html>")


def outcome_of_evaluation(work: Path) -> Any:
    """Return the metrics of the JSON report."""
    content = json.loads((work / "evaluation.json").read_text())
    page = (work / "new.html").read_text().rstrip()
    assert page.endswith("</html>")
    return {key: value for key, value in content.items() if "time" not in key and key not in ("command", "date")}


def check_pipeline(work: Path) -> None:
    """Check that a pipeline folder is absent or whole."""
    if (work / "new" / "model_index.json").exists():
        for path in (work / "new").rglob("*.json"):
            json.loads(path.read_text())
        assert list((work / "new").rglob("*.safetensors"))


def outcome_of_folder(work: Path) -> Any:
    """Return the hashes of all files in the new folder."""
    return {
        str(path.relative_to(work)): _digest(path)
        for path in sorted(work.glob("new*/**/*"))
        if path.is_file() and not _is_temporary(path)
    }


def check_listening_test(work: Path) -> None:
    """Check that there is no page that somebody could rate without a whole key."""
    if (work / "new" / "index.html").exists():
        assert len(json.loads((work / "new.key.json").read_text())["clips"]) == 4


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.suffix == ".tmp"


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def _training(recipe: str, name: str) -> Scenario:
    line = ("--config", f"{name}.yaml", "training.keep_checkpoints=1", "training.sample_every=2")
    scenario = Scenario(Call(recipe, line), (f"{name}.yaml", "digits"), check_run, outcome_of_run, ("--resume",))
    # The recipes share the code that writes a run.
    return scenario if name == "diffusion" else replace(scenario, step=5)


SCENARIOS = {
    "diffusion training": _training("train_diffwave_sashimi.py", "diffusion"),
    "autoregressive training": _training("train_autoregressive_sashimi.py", "autoregressive"),
    "classifier training": _training("train_digit_classifier.py", "classifier"),
    "diffusion sampling": Scenario(
        Call("sashimi-sample", ("--pipeline", "words", "--num-samples", "3", "--batch-size", "2", "--out", "new")),
        ("words",),
        check_samples,
        outcome_of_samples,
        advised=("--overwrite",),
    ),
    "autoregressive sampling": Scenario(
        Call(
            "sashimi-sample",
            ("--pipeline", "piano", "--engine", "eager", "--num-samples", "3", "--batch-size", "2", "--out", "new"),
        ),
        ("piano",),
        check_samples,
        outcome_of_samples,
        advised=("--overwrite",),
    ),
    "evaluation": Scenario(
        Call(
            "sashimi-evaluate",
            ("samples", "--reference", "digits", NAMES, "--classifier", "classifier", "--html", "new.html"),
        ),
        ("samples", "digits", "classifier"),
        check_evaluation,
        outcome_of_evaluation,
    ),
    "conversion": Scenario(
        Call("sashimi-convert", ("wavenet.pkl", "new", "--dilation-cycle", "2")),
        ("wavenet.pkl",),
        check_pipeline,
        outcome_of_folder,
    ),
    "listening test": Scenario(
        Call("sashimi-evaluate", ("listening-test", "make", "real=digits", "ours=samples", "--clips=2", "--out=new")),
        ("samples", "digits"),
        check_listening_test,
        outcome_of_folder,
    ),
}


class Laboratory:
    """Runs scenarios in folders of their own."""

    def __init__(self, folder: Path, world: Path) -> None:
        self._folder = folder
        self._world = world
        self._count = 0

    def work_folder(self, scenario: Scenario) -> Path:
        """Return a new working folder with the files that a scenario needs."""
        self._count += 1
        work = self._folder / str(self._count) / "work"
        work.mkdir(parents=True)
        for name in scenario.needs:
            source = self._world / name
            if source.is_dir():
                copy_folder(source, work / name)
            else:
                shutil.copy2(source, work / name)
        return work

    def undisturbed(self, scenario: Scenario) -> tuple[list[tuple[str, str]], Any]:
        """Return the file operations of a scenario and its outcome."""
        work = self.work_folder(scenario)
        record = work.parent / "operations"
        result = children().run(replace(scenario.call, fault={"record": str(record)}), work)
        assert result.code == 0, result.err
        return [tuple(json.loads(line)) for line in record.read_text().splitlines()], scenario.outcome(work)

    def disturbed(self, scenario: Scenario, faults: list[dict[str, Any]]) -> Iterator[tuple[Path, Result, Result]]:
        """Yield, for each fault, the working folder, the result of the call with it, and that of the call after it."""
        works = [self.work_folder(scenario) for _ in faults]
        first = [
            children().start(replace(scenario.call, fault=fault), work)
            for fault, work in zip(faults, works, strict=True)
        ]
        crashed = [children().result(number) for number in first]
        for work in works:
            scenario.check(work)
        again = replace(scenario.call, arguments=scenario.call.arguments + scenario.again)
        second = [children().start(again, work) for work in works]
        for work, before, number in zip(works, crashed, second, strict=True):
            result = children().result(number)
            if result.code == 2 and all(argument in result.err for argument in scenario.advised):
                result = children().run(replace(again, arguments=again.arguments + scenario.advised), work)
            yield work, before, result
            shutil.rmtree(work.parent)


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("crashes"), make_world(tmp_path_factory.mktemp("world") / "world"))


def assert_nothing_is_lost(
    laboratory: Laboratory, scenario: Scenario, when: str, chosen: Callable[[int], list[int]] | None = None
) -> None:
    """Run a scenario with a fault at each of its file operations, or at the chosen ones."""
    operations, expected = laboratory.undisturbed(scenario)
    numbers = list(range(0, len(operations), scenario.step)) if chosen is None else chosen(len(operations))
    problems = []
    faults = [{"at": number, "when": when} for number in numbers]
    for number, (work, first, second) in zip(numbers, laboratory.disturbed(scenario, faults), strict=True):
        where = f"{when} operation {number} of {len(operations)}, {' '.join(operations[number])}"
        problems += [f"{where}: {problem}" for problem in _problems(scenario, when, work, first, second, expected)]
    assert not problems, "\n".join(problems)


def _problems(scenario: Scenario, when: str, work: Path, first: Result, second: Result, expected: Any) -> Iterator[str]:
    if when == "full":
        errors = [line for line in first.err.split("\n") if line.startswith("error: ")]
        if first.code not in (0, 2):
            yield f"exit code {first.code}: {first.err[-300:]}"
        if first.code == 2 and len(errors) != 1:
            yield f"{len(errors)} lines of an error: {first.err[-300:]}"
        if "Traceback" in first.err:
            yield f"a traceback: {first.err[-300:]}"
    elif first.code != CRASHED:
        yield f"it did not end there, but with {first.code}: {first.err[-300:]}"
    if second.code == 2 and "already exists" in second.err:
        if scenario.outcome(work) != expected:
            yield f"the call after it is refused, but the outcome is not whole: {second.err[-300:]}"
    elif second.code != 0:
        yield f"the call after it ends with {second.code}: {second.err[-300:]}"
    elif scenario.outcome(work) != expected:
        yield "the outcome differs from that of an undisturbed call"


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after", "full"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_fault_at_every_file_operation(laboratory: Laboratory, name: str, when: str) -> None:
    assert_nothing_is_lost(laboratory, SCENARIOS[name], when)


@pytest.mark.parametrize(
    ("name", "when"),
    [
        ("diffusion training", "before"),
        ("diffusion training", "full"),
        ("diffusion sampling", "after"),
        ("conversion", "before"),
    ],
)
def test_a_fault_at_some_file_operations(laboratory: Laboratory, name: str, when: str) -> None:
    assert_nothing_is_lost(laboratory, SCENARIOS[name], when, lambda count: [count // 2, count - 2])
