"""Wrong settings of the three recipes are refused in one line; right ones, and text of any kind, are accepted."""

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.autoregressive import task as autoregressive
from sashimi_diffusion.training.autoregressive.config import AutoregressiveConfig
from sashimi_diffusion.training.config import RunConfig, check_same_run, from_tree, load_config, to_tree
from sashimi_diffusion.training.diffusion import task as diffusion
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.run_folder import config_of_command
from sashimi_diffusion.training.yaml_files import MAX_BYTES, apply_overrides, read_yaml, read_yaml_file, write_yaml
from sashimi_evaluation.classifiers.training import task as classifiers
from sashimi_evaluation.classifiers.training.config import ClassifierConfig

CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs"
FILES: dict[type[RunConfig], Path] = {
    DiffusionConfig: CONFIGS / "digits-small.yaml",
    AutoregressiveConfig: CONFIGS / "autoregressive" / "digits-ar-small.yaml",
    ClassifierConfig: CONFIGS / "classifiers" / "digits-small.yaml",
}
TREES = {kind: read_yaml_file(file) for kind, file in FILES.items()}

BOMB = (
    "[&a [1,1,1,1], " + ", ".join(f"&{b} [{','.join([f'*{a}'] * 6)}]" for a, b in itertools.pairwise("abcdefgh")) + "]"
)
ESCAPE = "\x1b[2Jred"

NUMBERS = {  # not the whole number that training.steps needs
    "": "training.steps must be a whole number, not None",
    "0": "training.steps is 0: it must be at least 1",
    "-1": "it must be at least 1",
    "1.5": "must be a whole number, not 1.5",
    "1e3": "must be a whole number, not 1000.0",
    "true": "must be a whole number, not True",
    "'3'": "must be a whole number, not '3'",
    "2026-01-01": "must be a whole number, not '2026-01-01'",
    "2026-13-45": "must be a whole number, not '2026-13-45'",
    "2026-01-01T00:00:00Z": "must be a whole number",
    "1:99:99": "must be a whole number, not '1:99:99'",
    "1000000001": "at most 1,000,000,000",
    "9" * 400: "training.steps is a number of more than 70 digits: it must be at least 1",
    "9" * 5000: "training.steps: '999999999999...9999999999999' is no value of the type int",
    "0x_": "'0x_' is no value of the type int",
    "!!int x": "training.steps: 'x' is no value of the type int (line 1)",
    "!!bool x": "'x' is no value of the type bool",
    "!!float x": "'x' is no value of the type float",
    "!!float 1": "must be a whole number, not 1.0",
    "!!binary aGk=": "values of the type binary are not supported",
    "!!timestamp 2026-01-01": "values of the type timestamp are not supported",
    "!!set {a}": "values of the type set are not supported",
    "!!python/name:os.system": "values of the type python/name:os.system are not supported",
    "!own 1": "values of the type !own are not supported",
    "!!str [1]": "values of the type str are not supported",
    "=": "values of the type value are not supported",
    "{<<: {a: 1}}": "values of the type merge are not supported",
    "&a [*a]": "more than 16 lists and groups within each other",
    "{a: &x {b: *x}}": "more than 16 lists and groups within each other",
    "[" * 3000: "more than 16 lists and groups within each other",
    "[" * 20 + "]" * 20: "more than 16 lists and groups within each other",
    "{a: " * 20 + "1" + "}" * 20: "more than 16 lists and groups within each other",
    BOMB: "more than 20,000 values, those repeated by aliases included",
    "[" + "1," * 21_000 + "]": "more than 20,000 values",
    "*a": "training.steps is not valid YAML (line 1): found undefined alias 'a'",
    "[1": "training.steps is not valid YAML (line 1): expected ',' or ']'",
    "{{a: 1}: 2}": "a key is a list or a group (line 1): expected text",
    "? [a]": "a key is a list or a group",
    "{a: 1, a: 2}": "training.steps: the key 'a' is given twice (line 1): keep one",
    "%x": "is not valid YAML",
    "@a": "found character '@' that cannot start any token",
    "`a`": "is not valid YAML",
    "1\n---\n2": "is not valid YAML",
    '"\\q"': "found unknown escape character 'q'",
    '"\\UFFFFFFFF"': "is no character",
    "\t": "is not valid YAML",
    "\x1b": "training.steps is not valid YAML: unacceptable character",
    "\udcff": "training.steps is not valid YAML: unacceptable character",
    "a\0b": "training.steps is not valid YAML: unacceptable character",
    "x" * 100_000: "must be a whole number, not 'xxxxxxxxxxxx...xxxxxxxxxxxxx'",
}

FORMS = {  # texts that are no overrides of known keys
    "training.steps": "'training.steps' is not an override: write key.sub=value",
    "": "'' is not an override",
    "=5": "is not an override",
    ".=5": "is not an override",
    ".steps=5": "is not an override",
    "training.=5": "is not an override",
    "training..steps=5": "is not an override",
    "a." * 1000 + "b=5": "is not an override",
    "word": "'word' is not an override",
    "training.steps.x=5": "training.steps.x: steps is a value, not a group of keys",
    "training.steps =5": "unknown config key training.steps : did you mean training.steps?",
    "trainning.steps=5": "unknown config key trainning: did you mean training?",
    "training.stepz=[1": "unknown config key training.stepz: did you mean training.steps?",
    "steps=5": "unknown config key steps",
    "training.training.steps=5": "unknown config key training.training",
    f"{ESCAPE}=5": r"unknown config key \x1b[2Jred",
    f"model.{ESCAPE}=5": r"unknown config key model.\x1b[2Jred",
    "caf\udce9=5": r"unknown config key caf\udce9",
    "training.caf\udce9=5": r"unknown config key training.caf\udce9",
    "model.caf\udce9=5": r"unknown config key model.caf\udce9",
    "k" * 5000 + "=1": "unknown config key kkkk",
    "training." + "k" * 5000 + "=1": "unknown config key training.kkkk",
    "training=5": "training must be a group of keys, not 5",
    "training=[steps]": "training must be a group of keys, not ['steps']",
    "training={steps: 5, stepz: 6}": "unknown config key training.stepz: did you mean training.steps?",
    "training={steps: 5, steps: 6}": "training: the key 'steps' is given twice",
    "training={5: 5}": "the keys of training must be text, not 5",
    "training={null: 5}": "the keys of training must be text, not None",
    "optimizer={lr: {a: 1}}": "optimizer.lr must be a number, not {'a': 1}",
    "model={5: 5}": "the keys of model must be text, not 5",
    "model={name: [a]}": "model.name must be",
    "model.sample_rate=5": "unknown config key model.sample_rate",
    "model.arguments=5": "unknown config key model.arguments",
    "data={5: 5}": "the keys of data must be text, not 5",
}

COMMON = {
    "seed=-1": "seed is -1: it must be at least 0 and at most 4,294,967,295",
    "seed=4294967296": "seed is 4294967296: it must be at least 0 and at most 4,294,967,295",
    "seed=1.5": "seed must be a whole number",
    "output_dir=": "output_dir is '': it must not be empty",
    "output_dir=''": "output_dir is '': it must not be empty",
    "output_dir=a\0b": r"output_dir is 'a\x00b': it must not contain a null character",
    "output_dir=" + "x" * 5000: "output_dir is 'xxxxxxxxxxxx...xxxxxxxxxxxxx': it must have at most 4,096 characters",
    "optimizer.name=x": "optimizer.name must be 'adamw' or 'sgd' or 'muon', not 'x'",
    "optimizer.name=": "optimizer.name must be 'adamw' or 'sgd' or 'muon', not ''",
    "optimizer.name=null": "optimizer.name must be 'adamw' or 'sgd' or 'muon', not 'null'",
    f"optimizer.name='{ESCAPE}'": r"not '\x1b[2Jred'",
    "optimizer.name=caf\udce9": r"not 'caf\udce9'",
    "optimizer.lr=nan": "optimizer.lr must be a number, not 'nan'",
    "optimizer.lr=.nan": "optimizer.lr is nan: it must be above 0 and at most 1e+38",
    "optimizer.lr=.inf": "optimizer.lr is inf: it must be above 0 and at most 1e+38",
    "optimizer.lr=1e400": "optimizer.lr is inf",
    "optimizer.lr=1e39": "optimizer.lr is 1e+39",
    "optimizer.lr=0": "optimizer.lr is 0: it must be above 0",
    "optimizer.lr=" + "9" * 400: "optimizer.lr is a number of more than 70 digits: it must be above 0",
    "optimizer.lr=": "optimizer.lr must be a number, not None",
    "optimizer.ssm_lr=.inf": "optimizer.ssm_lr is inf",
    "optimizer.weight_decay=.nan": "optimizer.weight_decay is nan: it must be at least 0 and at most 1,000",
    "optimizer.weight_decay=-1": "optimizer.weight_decay is -1: it must be at least 0",
    "optimizer.betas=[2,3]": "optimizer.betas is [2, 3]: it must be two numbers, each at least 0 and below 1",
    "optimizer.betas=[0.9,0.9,0.9]": "it must be two numbers",
    "optimizer.betas=[]": "optimizer.betas is []: it must be two numbers",
    "optimizer.betas=[.nan,0.9]": "optimizer.betas is [nan, 0.9]: it must be finite",
    "optimizer.betas=0.9": "optimizer.betas must be a list",
    f"optimizer.betas={BOMB}": "optimizer.betas: more than 20,000 values",
    "optimizer.momentum=1": "optimizer.momentum is 1: it must be at least 0 and below 1",
    "optimizer.warmup_steps=-1": "optimizer.warmup_steps is -1",
    "optimizer.decay=cosin": "optimizer.decay must be",
    "optimizer.plateau_factor=1": "optimizer.plateau_factor is 1",
    "optimizer.gradient_clip=.inf": "optimizer.gradient_clip is inf: it must be above 0 and at most 1e+38",
    "optimizer.gradient_clip=0": "optimizer.gradient_clip is 0: it must be above 0",
    "training.max_minutes=-5": "training.max_minutes is -5: it must be above 0 and at most 10,000,000",
    "training.max_minutes=1e300": "training.max_minutes is 1e+300",
    "training.batch_size=1000000000": "training.batch_size is 1000000000: it must be at least 1 and at most 65,536",
    "training.gradient_accumulation=0": "training.gradient_accumulation is 0",
    "training.cpu_threads=1000000": "training.cpu_threads is 1000000: it must be at least 1 and at most 4,096",
    "training.ema_decay=.nan": "training.ema_decay is nan: it must be at least 0 and below 1",
    "training.log_every=1000000000000": "training.log_every is 1000000000000",
    "training.checkpoint_every=0": "training.checkpoint_every is 0",
    "training.keep_checkpoints=0": "training.keep_checkpoints is 0",
    "training.validate_every=-1": "training.validate_every is -1",
    "training.sample_every=-1": "training.sample_every is -1",
    "training.mixed_precision=fp16": "training.mixed_precision must be null or 'fp32' or 'bf16', not 'fp16'",
    "training.cuda_graph=maybe": "training.cuda_graph must be true or false or 'auto', not 'maybe'",
    "training.trackers=x": "training.trackers must be a list in which each item is text, not 'x'",
    "training.trackers=[1]": "training.trackers must be a list in which each item is text, not [1]",
    "model.name=": "model.name must be",
    "model.name=x": "model.name must be",
}

OWN: dict[type[RunConfig], dict[str, str]] = {
    DiffusionConfig: {
        "model.d_model=0": "model.d_model is 0: expected a whole number from 1 to 65,536",
        "model.d_model=-1": "model.d_model is -1: expected a whole number",
        "model.n_layers=-1": "model.n_layers is -1: expected a whole number from 0 to 256 or a list",
        "model.n_layers=10000000": "model.n_layers is 10000000: expected",
        "model.n_layers=[1,-1,1]": "model.n_layers is [1, -1, 1]: expected",
        "model.n_layers=[1.5,1,1]": "model.n_layers must be a whole number or a list",
        "model.pool=[0]": "model.pool is [0]: expected",
        "model.pool=4": "model.pool must be a list",
        "model.expand=0": "model.expand is 0: expected",
        "model.ff=-1": "model.ff is -1: expected",
        "model.n_state=0": "model.n_state is 0: expected",
        "model.n_state=1000000000": "model.n_state is 1000000000: expected",
        "model.n_ssm=0": "model.n_ssm is 0: expected",
        "model.waveform_std=0": "model.waveform_std is 0: expected a number from 1e-09",
        "model.waveform_std=.nan": "model.waveform_std is nan: it must be finite",
        "model.embedding_sines=0": "model.embedding_sines is 0: expected",
        "model.embedding_dim=-1": "model.embedding_dim is -1: expected",
        "model.dt_min=0": "model.dt_min is 0: expected",
        "model.reverse_shift=2": "model.reverse_shift is 2: expected a whole number from 0 to 1",
        "model.kernel_length=0": "model.kernel_length is 0: expected",
        "model.mel_channels=0": "model.mel_channels is 0: expected",
        "model.mel_upsample=[0]": "model.mel_upsample is [0]: expected",
        "model.class_conditional=null": "model.class_conditional must be true or false",
        "model={name: wavenet, n_layers: 0}": "model.n_layers is 0: expected a whole number from 1 to 512",
        "model={name: wavenet, dilation_cycle: 60}": "model.dilation_cycle is 60: expected",
        "data.sample_rate=1000000000000": "data.sample_rate is 1000000000000: it must be at least 1",
        "data.length=1000000000000": "data.length is 1000000000000: it must be at least 1 and at most 1,000,000,000",
        "data.length=-1": "data.length is -1",
        "data.pattern=x": "data.pattern is 'x': the file name pattern 'x' cannot be used",
        "data.pattern=''": "data.pattern is '': it must not be empty",
        "data.pattern={": "data.pattern is '{'",
        "data.pattern={folder}": "none called folder",
        f"data.pattern='{{label}}{ESCAPE}'": r"\x1b[2Jred",
        "data.where=x": "data.where must be a group of keys",
        "data.where={speaker: []}": "data.where.speaker is []: it must have at least one value",
        "data.where.speaker=theo": "data.where must be a group of keys",
        "data.where.speaker=[true]": "data.where must be a group of keys",
        "data.where={1: [a]}": "the keys of data.where must be text, not 1",
        "data.where={[a]: [a]}": "a key is a list or a group",
        "data.holdout={index: []}": "data.holdout.index is []: it must have at least one value",
        "data.holdout={index: 0}": "data.holdout must be null or a group of keys",
        "data.splits=[1]": "data.splits is [1]: it must be three shares",
        "data.splits=[0.5,0.5,0.5]": "it must be three shares (training, validation, test) that add up to 1",
        "data.splits=[1,1,-1]": "it must be three shares",
        "data.splits=[.nan,0,0]": "data.splits is [nan, 0, 0]: it must be finite",
        "data.order=x": "data.order must be 'shuffled' or 'name'",
        "data.random_shift=-1": "data.random_shift is -1",
        "data.cache_dir=''": "data.cache_dir is '': it must not be empty",
        "data.speakers=nothing": "data.speakers names the field 'nothing', but the fields of '{label}_{",
        "data.normalize_rms=0": "data.normalize_rms is 0: it must be at least 1e-09 and at most 1000",
        "data.normalize_rms=.inf": "data.normalize_rms is inf",
        "data.gain_db=1e300": "data.gain_db is 1e+300: it must be at least 0 and at most 200",
        "data.mel.n_fft=0": "data.mel.n_fft is 0: it must be at least 2",
        "data.mel.f_min=-1": "data.mel.f_min is -1",
        "data.mel.f_max=.inf": "data.mel.f_max is inf",
        "data.mel=5": "data.mel must be a group of keys",
        "data.kind=x": "data.kind must be",
        "data.download=maybe": "data.download must be true or false",
        "schedule.num_train_timesteps=0": "schedule.num_train_timesteps is 0",
        "schedule.num_train_timesteps=1000000000": "schedule.num_train_timesteps is 1000000000",
        "schedule.num_train_timesteps=10": "sampling.steps is 20: it must not exceed schedule.num_train_timesteps=10",
        "schedule.beta_start=.nan": "schedule.beta_start is nan: it must be above 0 and below 1",
        "schedule.beta_end=1": "schedule.beta_end is 1: it must be above 0 and below 1",
        "schedule.beta_schedule=x": "schedule.beta_schedule must be",
        "schedule.prediction_type=sample": "schedule.prediction_type must be",
        "objective.min_snr_gamma=.inf": "objective.min_snr_gamma is inf",
        "objective.label_dropout=.nan": "objective.label_dropout is nan",
        "sampling.guidance_scale=.nan": "sampling.guidance_scale is nan: it must be at least -1,000 and at most 1,000",
        "sampling.guidance_scale=1e308": "sampling.guidance_scale is 1e+308",
        "sampling.scheduler=dim": "sampling.scheduler names an unknown scheduler 'dim', did you mean 'ddim'?",
        "sampling.steps=201": "sampling.steps is 201: it must not exceed schedule.num_train_timesteps=200",
        "sampling.num_samples=1000000": "sampling.num_samples is 1000000: it must be at least 0 and at most 10,000",
        "sampling.seed=-1": "sampling.seed is -1",
        "sampling.seed=18446744073709551616": "sampling.seed is 18446744073709551616",
    },
    AutoregressiveConfig: {
        "model.pool=[-4]": "model.pool is [-4]: expected",
        "model.num_tokens=0": "model.num_tokens is 0: expected",
        "model={name: wavenet, n_layers: 0}": "model.n_layers is 0: expected a whole number from 1 to 24",
        "model={name: samplernn, frame_sizes: [0]}": "model.frame_sizes is [0]: expected",
        "model={name: samplernn, dim: 0}": "model.dim is 0: expected",
        "data.normalize=x": "data.normalize must be 'example' or 'recording'",
        "data.carry_chunks=0": "data.carry_chunks is 0",
        "data.carry_chunks=7": "it must be a multiple of data.carry_chunks=7",
        "data.test=1": "data.test must be true or false",
        "sampling.seconds=0": "sampling.seconds is 0: it must be above 0 and at most 86,400",
        "sampling.seconds=.nan": "sampling.seconds is nan",
        "sampling.seconds=1e308": "sampling.seconds is 1e+308",
        "sampling.seconds=1e-9": "sampling.seconds is 1e-09, which is 0 samples at data.sample_rate=8000",
        "sampling.temperature=-1": "sampling.temperature is -1",
        "sampling.temperature=.inf": "sampling.temperature is inf",
        "sampling.top_p=0": "sampling.top_p is 0: it must be above 0 and at most 1",
        "sampling.engine=x": "sampling.engine is 'x': expected one of auto, eager, numba",
        "sampling.engine=": "sampling.engine is '': it must not be empty",
        "sampling.seed=4294967296": "sampling.seed is 4294967296",
    },
    ClassifierConfig: {
        "model.embedding=": "model.embedding is None: with model.name=small it must be speech-embedding",
        "model.embedding=''": "model.embedding is '': it must not be empty",
        "model.dropout=-1": "model.dropout is -1: expected a number from 0 to 1",
        "model.dropout=.nan": "model.dropout is nan: it must be finite",
        "model.depth=20": "unknown config key model.depth",
        "model={name: resnext, depth: 0}": "model.depth is 0: expected a whole number from 11 to 1,001",
        "model={name: resnext, embedding: a}": "model.embedding is 'a': with model.name=resnext it must be null",
        "data.sources=[]": "data.sources must be a group of keys, not []",
        "data.sources={a: 1}": "data.sources.a must be a group of keys, not 1",
        "data.sources={1: {path: a}}": "the keys of data.sources must be text, not 1",
        "data.sources.a.kind=x": "data.sources.a.kind must be",
        "data.sources.a.pth=x": "unknown config key data.sources.a.pth: did you mean data.sources.a.path?",
        "data.sources.a.splits=[1]": "data.sources.a.splits is [1]: it must be three shares",
        "data.sources.a.pattern={": "data.sources.a.pattern is '{'",
        "data.sources.a.where={x: []}": "data.sources.a.where.x is []",
        "data.sources.a.path=''": "data.sources.a.path is ''",
        f"data.sources.{ESCAPE}.pth=x": r"unknown config key data.sources.\x1b[2Jred.pth",
        "data.balance=.nan": "data.balance is nan: it must be at least 0 and at most 1",
        "augmentation.speed=.inf": "augmentation.speed is inf: it must be at least 1 and at most 100",
        "augmentation.noise_db=[1]": "augmentation.noise_db is [1]: it must be two numbers",
        "augmentation.noise_db=[2,1]": "the lower first",
        "augmentation.noise_db=[.nan,1]": "augmentation.noise_db is [nan, 1]: it must be finite",
        "augmentation.noise_db=[1,1e300]": "it must be two numbers from -200 to 200",
        "augmentation.gain_db=1e300": "augmentation.gain_db is 1e+300",
        "objective.label_smoothing=.nan": "objective.label_smoothing is nan",
    },
}

COMBINED = {
    ("optimizer.decay=plateau", "training.validate_every=0"): "plateau needs validations",
    ("model.class_conditional=false", "data.speakers=null"): "sampling.guidance_scale is 2.0: without classes",
    ("data.pattern=null",): "data.speakers names the field 'speaker', but the fields are folder",
    ("model.mel_channels=4",): "f_min < f_max <= 4000, half of data.sample_rate",
    ("model.mel_channels=4", "data.mel={f_max: 4000, n_fft: 16384}"): "less than twice data.length=5120",
    ("data.where={speaker: [a]}", "data.where.speaker.x=1"): "speaker is a value, not a group of keys",
    ("model.name=wavenet",): "model.n_layers must be a whole number, not [0, 2, 5]",
    ("model.name=wavenet", "model.n_layers=3"): "unknown config key model.d_model: the valid keys are",
}

WRONG = [
    *((DiffusionConfig, (f"training.steps={value}",), says) for value, says in NUMBERS.items()),
    *((kind, (form,), says) for kind in FILES for form, says in FORMS.items()),
    *((kind, (override,), says) for kind in FILES for override, says in COMMON.items()),
    *((kind, (override,), says) for kind, table in OWN.items() for override, says in table.items()),
    *((DiffusionConfig, overrides, says) for overrides, says in COMBINED.items()),
]


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
        (DiffusionConfig, "data.path=", None),
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
        return autoregressive._create_model(config)
    return classifiers._create_model(config.model)


@pytest.mark.parametrize(
    ("kind", "override", "says"),
    [
        (DiffusionConfig, "model.norm=x", "unknown norm 'x'"),
        (DiffusionConfig, "model.n_layers=[]", "n_layers must be one number or 3 numbers"),
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
