"""Wrong settings of the three recipes are refused in one line; right ones, and text of any kind, are accepted."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.autoregressive import network as autoregressive
from sashimi_diffusion.training.autoregressive.config import AutoregressiveConfig
from sashimi_diffusion.training.config import RunConfig, check_same_run, from_tree, load_config, to_tree
from sashimi_diffusion.training.diffusion import task as diffusion
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.run_folder import config_of_command
from sashimi_diffusion.training.yaml_files import MAX_BYTES, apply_overrides, read_yaml, write_yaml
from sashimi_evaluation.classifiers.training import task as classifiers
from sashimi_evaluation.classifiers.training.config import ClassifierConfig
from tests.faults.settings_zoo import BOMB, ESCAPE, FILES, TREES, WRONG


def config_of(kind: type[RunConfig], *overrides: str) -> RunConfig:
    return from_tree(kind, apply_overrides(TREES[kind], overrides))


def refusal(kind: type[RunConfig], *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        config_of(kind, *overrides)
    return str(error.value)


def value_of(tree: dict, key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree


@pytest.mark.parametrize(
    ("kind", "overrides", "says"),
    WRONG,
    ids=[
        f"{number}-{kind.__name__}-{ascii(' '.join(overrides))[1:41]}"
        for number, (kind, overrides, _) in enumerate(WRONG)
    ],
)
def test_a_wrong_override_is_refused_in_one_line(kind: type[RunConfig], overrides: tuple[str, ...], says: str) -> None:
    message = refusal(kind, *overrides)
    assert says in message
    assert message.isprintable()
    assert len(message) < 700


def test_the_table_has_all_overrides_once() -> None:
    assert len({row[:2] for row in WRONG}) == len(WRONG) >= 300


TEXTS = [
    *(
        "runs/a #2",
        "null",
        "2026",
        "2026-01-01",
        "1e5",
        "12:30",
        "a: b",
        "a:",
        "*a",
        "&a",
        "!a",
        "!!int x",
        "%x",
        "@a",
        "[a]",
    ),
    *(
        "- a",
        "? a",
        "{a}",
        "{a: b}",
        "it's",
        "'",
        '"',
        "'a' #'",
        "~",
        "yes",
        " runs",
        "runs ",
        "a\nb",
        "a\\b",
        "|",
        ">",
    ),
    *(
        "=",
        "a=b",
        "<<",
        "\u2193",
        "\U0001f363",
        "caf\udce9",
        ESCAPE,
        "#",
        "--- a",
        "a\tb",
        "\u2028",
        "\x85",
        "0x1F",
        ".nan",
    ),
]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
@pytest.mark.parametrize("kind", FILES, ids=lambda kind: kind.__name__)
def test_an_override_of_text_is_the_value(kind: type[RunConfig], text: str) -> None:
    config = config_of(kind, f"output_dir={text}")
    assert config.output_dir == text
    assert from_tree(kind, read_yaml(write_yaml(to_tree(config)), "config.yaml")) == config


@pytest.mark.parametrize(
    ("kind", "override", "expected"),
    [
        (DiffusionConfig, "output_dir='null'", "null"),
        (DiffusionConfig, 'output_dir="a #2"', "a #2"),
        (DiffusionConfig, "output_dir='it''s'", "it's"),
        (DiffusionConfig, r'output_dir="a\tb"', "a\tb"),
        (DiffusionConfig, r'output_dir="C:\new"x', r'"C:\new"x'),
        (DiffusionConfig, "data.pattern={label}_{speaker}_{name}", "{label}_{speaker}_{name}"),
        (DiffusionConfig, 'data.pattern="{label}_{speaker}"', "{label}_{speaker}"),
        (DiffusionConfig, "data.pattern={speaker}/{label}: #{take}", "{speaker}/{label}: #{take}"),
        (DiffusionConfig, "data.path=null", None),
        (DiffusionConfig, "data.path=2026", "2026"),
        (DiffusionConfig, "data.path=*", "*"),
        (DiffusionConfig, "data.cache_dir=/tmp/[a]", "/tmp/[a]"),
        (DiffusionConfig, "data.holdout=null", None),
        (DiffusionConfig, "data.where.speaker=[theo, 7]", ["theo", 7]),
        (DiffusionConfig, "sampling.scheduler=null", None),
        (DiffusionConfig, "sampling.scheduler=ddim", "ddim"),
        (DiffusionConfig, "training.mixed_precision=null", None),
        (DiffusionConfig, "training.cuda_graph=true", True),
        (DiffusionConfig, "training.cuda_graph=auto", "auto"),
        (DiffusionConfig, "training.trackers=[]", []),
        (DiffusionConfig, "training.steps=!!int 5", 5),
        (DiffusionConfig, "training.steps=1_000", 1000),
        (DiffusionConfig, "training.steps=5 # a comment", 5),
        (DiffusionConfig, "training.steps=1000000000", 10**9),
        (DiffusionConfig, "optimizer.lr=1e38", 1e38),
        (DiffusionConfig, "optimizer.betas=[0, 0.5]", [0.0, 0.5]),
        (DiffusionConfig, "seed=4294967295", 2**32 - 1),
        (DiffusionConfig, "model.waveform_std=null", None),
        (DiffusionConfig, "model.norm=layer", "layer"),
        (DiffusionConfig, "model.n_layers=[0, 0, 0]", [0, 0, 0]),
        (DiffusionConfig, "model.n_layers=1", 1),
        (DiffusionConfig, "data.splits=[1, 0, 0]", [1.0, 0.0, 0.0]),
        (DiffusionConfig, "data.random_shift=null", None),
        (AutoregressiveConfig, "sampling.seconds=0.01", 0.01),
        (AutoregressiveConfig, "sampling.temperature=0", 0.0),
        (AutoregressiveConfig, "sampling.engine=eager", "eager"),
        (AutoregressiveConfig, "optimizer.gradient_clip=null", None),
        (ClassifierConfig, "model.embedding=my #2", "my #2"),
        (ClassifierConfig, "data.sources.fsdd.path=a #2", "a #2"),
        (ClassifierConfig, "data.sources.new.path=null", None),
        (ClassifierConfig, "data.sources.new.pattern={label}_{take}", "{label}_{take}"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else ascii(value)[:40],
)
def test_a_right_override_is_accepted(kind: type[RunConfig], override: str, expected: object) -> None:
    assert value_of(to_tree(config_of(kind, override)), override.partition("=")[0]) == expected


def test_a_later_override_is_applied_to_an_earlier_one_of_its_group() -> None:
    config: Any = config_of(
        DiffusionConfig, "data.where={speaker: [a]}", "data.where.index=[1]", "data.where.speaker=[b]"
    )
    assert config.data.where == {"speaker": ["b"], "index": [1]}


def test_the_name_of_the_network_may_follow_its_arguments() -> None:
    overrides = ("model={}", "model.mel_alignment=1", "model.name=sashimi")
    assert config_of(DiffusionConfig, *overrides).model.arguments == {"mel_alignment": "1"}
    config = config_of(
        AutoregressiveConfig, "model={}", "model.quantization=1e5", "model.dim=4", "model.name='samplernn'"
    )
    assert config.model.arguments == {"quantization": "1e5", "dim": 4}


@pytest.mark.parametrize("name", ["run #2", "2026", "null", "'quoted'", "caf\udce9"], ids=ascii)
def test_a_run_is_resumed_in_the_folder_that_was_meant(tmp_path: Path, monkeypatch: Any, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(name.strip("'"))
    folder.mkdir()
    stored = config_of(DiffusionConfig, f"output_dir={name}")
    (folder / "config.yaml").write_text(write_yaml(to_tree(stored)))
    for file in (None, FILES[DiffusionConfig]):
        overrides = [f"output_dir={name}", "training.steps=9000"]
        config = config_of_command(DiffusionConfig, file, FILES[DiffusionConfig], overrides, resume=True)
        assert config.output_dir == str(folder)
        assert config.training.steps == 9000
    with pytest.raises(UserError, match="output_dir"):
        config_of_command(DiffusionConfig, None, FILES[DiffusionConfig], ["output_dir="], resume=True)


def test_a_value_in_a_file_is_yaml(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "output_dir: runs/a #2\ndata: {path: ~, pattern: '{label}', where: {speaker: &s [a]}, holdout: {take: *s}}\n"
    )
    config: Any = load_config(DiffusionConfig, file)
    assert (config.output_dir, config.data.path, config.data.pattern) == ("runs/a", None, "{label}")
    assert config.data.where["speaker"] == config.data.holdout["take"] == ["a"]
    file.write_text("output_dir: 2026\n")
    with pytest.raises(UserError, match="output_dir must be text, not 2026"):
        load_config(DiffusionConfig, file)


def network_of(kind: type[RunConfig], *overrides: str) -> object:
    if kind is DiffusionConfig:
        config: Any = config_of(kind, *overrides, "model.waveform_std=1")
        return diffusion.create_model(config, ["a"], ["b"])
    config = config_of(kind, *overrides)
    if kind is AutoregressiveConfig:
        return autoregressive.create_network(config)
    return classifiers._create_model(config.model, ["a", "b"])


@pytest.mark.parametrize(
    ("kind", "override", "says"),
    [
        (DiffusionConfig, "model.norm=x", "unknown norm 'x'"),
        (DiffusionConfig, "model.n_layers=[]", "n_layers must be one number or 3 numbers"),
        (DiffusionConfig, "model.n_layers=0", "n_layers is 0: expected at least one layer"),
        (AutoregressiveConfig, "model.n_layers=[0, 0, 0]", "n_layers is [0, 0, 0]: expected at least one layer"),
        (DiffusionConfig, "model.pool=[]", "n_layers must be one number or 1 numbers"),
        (DiffusionConfig, "model.pool=[7, 2]", "data.length is 5120, but this network needs multiples of 14"),
        (DiffusionConfig, "model.parameterization=x", "unknown parameterization 'x'"),
        (DiffusionConfig, "model.initialization=x", "initialization 'x' does not exist"),
        (DiffusionConfig, "model.discretization=x", "unknown discretization 'x'"),
        (DiffusionConfig, "model.n_state=5", "n_state must be even"),
        (DiffusionConfig, "model.n_ssm=7", "n_ssm must divide"),
        (DiffusionConfig, "model.embedding_sines=5", "embedding_sines is 5: expected an even number"),
        (DiffusionConfig, "model.mel_alignment=x", "unknown mel_alignment 'x'"),
        (DiffusionConfig, "model.d_model=65536", "parameters: expected at most"),
        (DiffusionConfig, "model={name: wavenet, residual_channels: 65536}", "parameters: expected at most"),
        (AutoregressiveConfig, "model.quantization=x", "unknown quantization 'x'"),
        (AutoregressiveConfig, "model.num_tokens=300", "num_tokens is 300, expected a power of two"),
        (AutoregressiveConfig, "model={name: samplernn, frame_sizes: []}", "frame_sizes is []: expected at least one"),
        (AutoregressiveConfig, "model={name: samplernn, dim: 65536}", "parameters: expected at most"),
        (ClassifierConfig, "model={name: resnext, depth: 12}", "depth is 12: it must be 9 k + 2"),
        (ClassifierConfig, "model={name: resnext, base_width: 1024, cardinality: 256}", "choose smaller sizes"),
        (ClassifierConfig, "model.dropout=1", "dropout is 1: it must be at least 0 and below 1"),
        (ClassifierConfig, "model.embedding=nowhere", "there is no speech embedding nowhere"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value)[:40],
)
def test_a_network_that_cannot_exist_is_refused_before_training(
    kind: type[RunConfig], override: str, says: str
) -> None:
    with pytest.raises(UserError) as error:
        network_of(kind, override)
    assert says in str(error.value)


def test_config_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "endless").symlink_to("/dev/zero")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    contents: dict[str, bytes] = {
        "large": b"#" * (MAX_BYTES + 1),
        "binary": bytes(range(256)),
        "null": b"seed: \0",
        "utf16": "seed: 1".encode("utf-16"),
        "list": b"- seed: 1\n",
        "text": b"seed\n",
        "twice": b"training:\n  steps: 1\n  steps: 2\n",
        "deep": b"training: " + b"[" * 5000,
        "block": b"".join(b" " * depth + b"a:\n" for depth in range(30)),
        "bomb": f"seed: {BOMB}".encode(),
        "tag": b"seed: !!python/object/apply:os.system [true]\n",
        "date": b"seed: 2026-01-01\n",
        "broken": b"training: {steps: 1\n",
        "tabs": b"training:\n\tsteps: 1\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    expected = {
        "missing": "does not exist: expected a config",
        "text/below": "does not exist: expected a config",
        "x" * 300: "File name too long",
        "fifo": "is a FIFO: expected a config",
        "folder": "is a folder: expected a config",
        "endless": "is a device: expected a config",
        "loop": "Too many levels of symbolic links",
        "sparse": "has more than 1 MB",
        "large": "has more than 1 MB",
        "binary": "is not UTF-8 text",
        "null": "null is not valid YAML: unacceptable character",
        "utf16": "is not UTF-8 text",
        "list": "must hold `key: value` lines, not a list",
        "text": "must hold `key: value` lines, not 'seed'",
        "twice": "twice: the key 'steps' is given twice (line 3): keep one",
        "deep": "deep: more than 16 lists and groups within each other",
        "block": "block: more than 16 lists and groups within each other",
        "bomb": "bomb: more than 20,000 values",
        "tag": "tag: values of the type python/object/apply:os.system are not supported (line 1)",
        "date": "seed must be a whole number, not '2026-01-01'",
        "broken": "broken is not valid YAML (line 2)",
        "tabs": "tabs is not valid YAML (line 2)",
    }
    for name, says in expected.items():
        with pytest.raises(UserError) as error:
            load_config(DiffusionConfig, tmp_path / name)
        assert says in str(error.value)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 700


def test_the_advice_for_a_resumed_run_can_be_used() -> None:
    stored = config_of(DiffusionConfig)
    for changed, advice in {
        "data.holdout=null": 'resume with data.holdout={"index": [0, 1, 2, 3, 4]}',
        "data.speakers=null": "resume with data.speakers=speaker",
        "model.unet=false": "resume with model.unet=true",
        "objective.min_snr_gamma=5": "resume with objective.min_snr_gamma=null",
    }.items():
        with pytest.raises(UserError) as error:
            check_same_run(config_of(DiffusionConfig, changed), stored)
        assert advice in str(error.value)
        override = advice.removeprefix("resume with ")
        check_same_run(config_of(DiffusionConfig, changed, override), stored)


def keys_of(tree: dict, prefix: str = "") -> list[str]:
    keys = []
    for key, value in tree.items():
        keys.append(f"{prefix}{key}")
        keys += keys_of(value, f"{prefix}{key}.") if isinstance(value, dict) else []
    return keys


KEYS = sorted({key for kind in FILES for key in keys_of(to_tree(config_of(kind)))})
pieces = st.sampled_from(
    [*"[]{},:&*!|>'\"%@`#-?~=<.\\ \n\t01e_x", "&a ", "*a", "!!", "!!int ", "nan", ".inf", "null", "true", "<<"]
)
values = st.one_of(
    st.text(), st.text(st.characters(codec=None)), st.lists(pieces, max_size=12).map("".join), st.floats().map(str)
)
overrides = st.one_of(st.text(), st.tuples(st.sampled_from(KEYS), values).map("=".join))


@given(kind=st.sampled_from(list(FILES)), texts=st.lists(overrides, min_size=1, max_size=3))
@example(kind=DiffusionConfig, texts=['seed="\\UFFFFFFFF"'])
def test_any_override_gives_a_config_or_one_line(kind: type[RunConfig], texts: list[str]) -> None:
    config, message = None, ""
    try:
        config = config_of(kind, *texts)
    except UserError as error:
        message = str(error)
    assert message.isprintable()
    assert len(message) < 1500
    if config is not None:
        assert from_tree(kind, read_yaml(write_yaml(to_tree(config)), "config.yaml")) == config
