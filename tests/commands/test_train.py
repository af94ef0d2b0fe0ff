"""Tests of ``sashimi-train``: packaged configs, the choice of a config, sub-commands, and short runs of every kind."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from sashimi_diffusion.commands import train as diffusion_command
from sashimi_diffusion.commands.train import AUTOREGRESSIVE, DIFFUSION
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training import command as training_command
from sashimi_diffusion.training.command import Recipe
from sashimi_diffusion.training.config import load_config
from sashimi_diffusion.training.loop import Trainer
from sashimi_diffusion.training.packaged_configs import CONFIGS, config_file, description, overview, packaged_configs
from sashimi_evaluation.commands import train as train_command
from sashimi_evaluation.commands.train import CLASSIFIER
from tests.faults.forked_runs import write_configs

ROOT = Path(__file__).resolve().parents[2]
RECIPES = {"diffusion": DIFFUSION, "autoregressive": AUTOREGRESSIVE, "classifier": CLASSIFIER}
PACKAGED = [(recipe, name) for recipe in RECIPES.values() for name in packaged_configs(recipe.configs)]
QUICK = ["training.steps=2", "training.batch_size=2", "training.trackers=[]", "training.cpu_threads=1"]
SHORT = {
    "diffusion": "model.d_model=8 model.n_layers=[0,0,1] model.n_state=4 data.length=512 data.random_shift=0 "
    "data.holdout={index:\\ [0]} training.validation_examples=2 sampling.num_samples=1 sampling.steps=1",
    "autoregressive": "model.d_model=4 model.n_layers=1 model.pool=[4] model.n_state=4 data.length=256 "
    "data.splits=[0.5,0.25,0.25] training.validation_examples=2 sampling.num_samples=1 sampling.seconds=0.01 "
    "sampling.engine=eager",
    "classifier": "training.validation_examples=4",
}
"""Settings that make a run with the default config of each kind end in seconds."""

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def train(capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs ``sashimi-train`` and returns exit code, stdout and stderr."""

    def run(*arguments: str, module=train_command) -> tuple[int, str, str]:
        code = module.main(arguments)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with recordings and a config for each kind of run."""
    folder = tmp_path_factory.mktemp("world")
    write_configs(folder)
    return folder


@pytest.mark.parametrize(("recipe", "name"), PACKAGED, ids=[f"{r.config.__name__}-{name}" for r, name in PACKAGED])
def test_a_packaged_config_loads_and_says_what_it_trains(recipe: Recipe, name: str) -> None:
    file = packaged_configs(recipe.configs)[name]
    config = load_config(recipe.config, file)
    assert config.output_dir in (f"runs/{name}", f"runs/{name}-classifier")
    line = description(file)
    assert 30 < len(line) <= 100
    assert line[0].isupper()
    assert line.endswith(".")
    assert re.fullmatch(r"[a-z0-9-]+", name)
    for command in re.findall(r"^# (sashimi-train .*)", file.read_text(), flags=re.MULTILINE):
        kind = next(kind for kind, other in RECIPES.items() if other is recipe)
        assert command.startswith(f"sashimi-train {kind} ")
        assert name == recipe.default or f"--config {name} " in command


@pytest.mark.parametrize("kind", RECIPES)
def test_the_list_has_all_configs_and_their_folder(train: Command, kind: str) -> None:
    recipe = RECIPES[kind]
    assert recipe.default in packaged_configs(recipe.configs)
    code, out, err = train(kind, "--list")
    assert (code, err) == (0, "")
    assert out == overview(recipe.configs) + "\n"
    *lines, folder = out.splitlines()
    assert [line.split()[0] for line in lines] == list(packaged_configs(recipe.configs))
    assert len({line.split(maxsplit=1)[1] for line in lines}) == len(lines)
    assert Path(folder.removeprefix("in the folder ")).is_dir()


def test_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = CONFIGS / "diffusion"
    for name in ("own", "digits-small", "own.yaml"):
        Path(name).write_text("seed: 1\n")
    assert config_file("digits-small", folder) == folder / "digits-small.yaml"  # not the file of this name
    for path in ("own", "own.yaml", "./digits-small", f"{tmp_path}/own", "nowhere.yml", "nowhere/own"):
        assert config_file(path, folder) == Path(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("sc09-sashimi-d46", "no config 'sc09-sashimi-d46', did you mean 'sc09-sashimi-d64'? --list prints all names"),
        ("Digits_Small", "did you mean 'digits-small'?"),
        ("zzzz", "there is no config 'zzzz': --list prints all names; the path of a file ends in .yaml"),
        ("", "there is no config ''"),
        ("piano-small", "the config piano-small is for another kind of run: autoregressive"),
        (
            "recipes/configs/sc09-sashimi-d64.yaml",
            "does not exist: .*; the packaged config is --config sc09-sashimi-d64",
        ),
        ("\x1b[2Jred", r"there is no config '\x1b[2Jred'"),
    ],
)
def test_a_config_that_is_not_there(value: str, message: str) -> None:
    pattern = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(UserError, match=pattern):
        config_file(value, CONFIGS / "diffusion")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            "the first argument must be one of diffusion, autoregressive, distill, init, classifier (see sashimi-train "
            "--help)",
        ),
        (["difusion"], "not 'difusion', did you mean 'diffusion'?"),
        (["data.path=x"], "the first argument must be one of"),
        (["--config", "digits-small", "diffusion"], "not '--config'"),
        (["diffusion", "--list", "--resume"], "leave out --resume, or --list"),
        (["diffusion", "--list", "--config", "digits-small"], "leave out --config, or --list"),
        (["diffusion", "--list", "seed=1"], "leave out key.sub=value, or --list"),
        (["diffusion", "--nothing"], "unrecognized arguments: --nothing (see sashimi-train diffusion --help)"),
    ],
)
def test_wrong_calls(train: Command, arguments: list[str], message: str) -> None:
    code, out, err = train(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_the_command_of_the_library_names_the_one_with_classifiers(train: Command) -> None:
    code, out, err = train("classifier", "--list", module=diffusion_command)
    assert (code, out) == (2, "")
    assert "`sashimi-train classifier`" in err
    code, out, err = train("--help", module=diffusion_command)
    assert (code, err) == (0, "")
    assert "`python -m sashimi_evaluation.commands.train classifier`" in " ".join(out.split())
    assert "`python -m" not in train("--help")[1]
    assert train("diffusion", "--list", module=diffusion_command) == train("diffusion", "--list")


def test_the_help_has_all_sub_commands_and_each_has_examples(
    train: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = train("--help")
    assert code == 0
    for kind in RECIPES:
        assert re.search(rf"^  {kind} +train an? ", out, flags=re.MULTILINE)
        with pytest.raises(SystemExit) as end:
            train(kind, "--help")
        assert end.value.code == 0
        text = capsys.readouterr().out
        assert text.startswith(f"usage: sashimi-train {kind} ")
        assert f"(default: {RECIPES[kind].default}, or" in " ".join(text.split())
        assert f"\n  sashimi-train {kind} --list" in text
        assert "(default: False)" not in text


def short_run(world: Path, kind: str, run: Path) -> list[str]:
    """Return the arguments of a run of two steps with the default config of a kind."""
    if kind == "classifier":
        data = [f"data.sources.fsdd.path={world / 'digits'}", "data.sources.fsdd.holdout={index: [3]}"]
        data.append(f"data.sources.fsdd.cache_dir={world / 'cache'}")
    else:
        data = [f"data.path={world / 'recordings'}", f"data.cache_dir={world / 'cache'}"]
    settings = [part.replace("\\", "") for part in re.split(r"(?<!\\) ", SHORT[kind])]
    return [kind, *data, *QUICK, *settings, f"output_dir={run}"]


@pytest.mark.parametrize("kind", RECIPES)
def test_a_run_begins_with_its_config_and_can_be_resumed(
    train: Command, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    arguments = short_run(world, kind, run)
    code, out, err = train(*arguments)
    assert code == 0, err
    recipe = RECIPES[kind]
    assert out.splitlines()[0] == f"config: {recipe.configs / f'{recipe.default}.yaml'}"
    assert (run / "pipeline").is_dir()
    assert (run / "checkpoints" / "step-000002").is_dir()

    code, out, err = train(kind, "--resume", f"output_dir={run}", "training.steps=3")
    assert code == 0, err
    assert out.splitlines()[0] == f"config: {run / 'config.yaml'}"
    assert (run / "checkpoints" / "step-000003").is_dir()

    # The same command, as the message after an interruption says.
    code, out, err = train(*arguments, "training.steps=4", "--resume", "--config", recipe.default)
    assert code == 0, err
    assert out.splitlines()[0] == f"config: {recipe.configs / f'{recipe.default}.yaml'}"
    assert (run / "checkpoints" / "step-000004").is_dir()


def test_a_run_with_a_file(train: Command, world: Path, tmp_path: Path) -> None:
    file = world / "diffusion.yaml"
    arguments = ["diffusion", "--config", str(file), f"output_dir={tmp_path / 'run'}"]
    code, out, err = train(*arguments, "training.steps=1", "sampling.num_samples=0")
    assert code == 0, err
    assert out.splitlines()[0] == f"config: {file}"


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ([], "the same command with --resume starts from the beginning"),
        (["--resume-from", "x"], "the same command with --resume instead of --resume-from starts from the beginning"),
    ],
)
def test_advice_after_an_interruption(
    train: Command, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: list[str], advice: str
) -> None:
    run = tmp_path / "run"

    def interrupted(*_: object, **__: object) -> None:
        run.mkdir()
        (run / "config.yaml").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(training_command, "train", interrupted)
    arguments = ["--config", str(world / "diffusion.yaml"), f"output_dir={run}"]
    code, _, err = train("diffusion", *arguments, *option)
    assert code == 130
    assert err.strip() == f"stopped; there is no checkpoint yet, so {advice}"


def test_sigterm_ends_a_run_after_the_step_with_a_checkpoint(
    train: Command, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, run = Trainer._step, tmp_path / "run"

    def interrupted(trainer: Trainer, progress: float) -> float:
        if trainer.counters.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, progress)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    settings = ["training.steps=50", "training.checkpoint_every=50"]
    code, _, err = train("diffusion", "--config", str(world / "diffusion.yaml"), *settings, f"output_dir={run}")
    assert code == 130, err
    checkpoint = run / "checkpoints" / "step-000003"
    assert err.splitlines()[-1] == f"stopped by SIGTERM; the same command with --resume continues from {checkpoint}"
    assert checkpoint.is_dir()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_does_not_start_prints_no_config(train: Command, world: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(world / "diffusion.yaml"), f"output_dir={tmp_path / 'run'}", "data.path=nowhere"]
    code, out, err = train("diffusion", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")


def test_no_file_of_the_packages_looks_for_the_recipes() -> None:
    for package in ("sashimi_diffusion", "kernels/sashimi_kernels", "evaluation/sashimi_evaluation"):
        for file in (ROOT / package).rglob("*.py"):
            assert not re.search(r"[\"'/]recipes[\"'/]\S*[\"']", file.read_text()), file
