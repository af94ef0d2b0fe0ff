"""Tests of configs: validation of keys and types, overrides, YAML files, published configs."""

from dataclasses import asdict

import pytest
from pydantic import ValidationError

from sashimi_diffusion.data import MelSettings
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.config import check_same_run, from_tree, load_config, to_tree
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.task import create_model
from sashimi_diffusion.training.packaged_configs import CONFIGS
from sashimi_diffusion.training.yaml_files import apply_overrides, read_yaml, write_yaml

DIFFUSION = CONFIGS / "diffusion"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.stepz=3", "did you mean training.steps?"),
        ("trainning.steps=3", "did you mean training?"),
        ("model.d_modell=8", "did you mean model.d_model?"),
        ("model.name=sashmi", "model.name must be 'sashimi' or 'wavenet', not 'sashmi'"),
        ("model.d_model=wide", "model.d_model must be a whole number, not 'wide'"),
        ("model.d_model=8.5", "model.d_model must be a whole number"),
        ("model.sample_rate=8000", "unknown config key model.sample_rate"),
        ("model.num_speakers=6", "unknown config key model.num_speakers"),
        ("data.speaker=speaker", "did you mean data.speakers?"),
        ("data.speakers=[speaker]", "data.speakers names the field '[speaker]', but the fields of"),
        ("training.steps=1.5", "training.steps must be a whole number"),
        ("training.steps=true", "training.steps must be a whole number"),
        ("training.steps=0", "training.steps is 0: it must be at least 1"),
        ("optimizer.lr=fast", "optimizer.lr must be a number, not 'fast'"),
        ("optimizer.lr=-1", "optimizer.lr is -1: it must be above 0"),
        ("optimizer.decay=cosin", "optimizer.decay must be 'constant' or 'cosine'"),
        ("optimizer.betas=[0.9, x]", "optimizer.betas must be a list in which each item is a number"),
        ("data.where.speaker=theo", "data.where must be a group of keys"),
        ("data.where={1: [theo]}", "the keys of data.where must be text, not 1"),
        ("optimizer.betas=[0.9]", "optimizer.betas is [0.9]: it must be two numbers"),
        ("optimizer.lr=true", "optimizer.lr must be a number, not True"),
        ("training.steps='3'", "training.steps must be a whole number, not '3'"),
        ("training.cpu_threads=0", "training.cpu_threads is 0: it must be at least 1"),
        ("model.unet=1", "model.unet must be true or false, not 1"),
        ("model.clas_conditional=true", "did you mean model.class_conditional?"),
        ("model=[sashimi]", "model must be a group of keys, not ['sashimi']"),
        ("data.mel.n_fft=x", "data.mel.n_fft must be a whole number"),
        ("model.mel_whitening=true", "model.mel_whitening is true, but model.mel_channels is null"),
        ("data=3", "data must be a group of keys"),
        ("objective.label_dropout=1", "objective.label_dropout is 1: it must be at least 0 and below 1"),
        ("training.steps", "is not an override"),
        ("model.name.x=1", "model.name.x: name is a value, not a group of keys"),
        ("training.steps=[1", "is not valid YAML"),
    ],
)
def test_a_wrong_setting_is_named(tiny, override, expected):
    with pytest.raises(UserError) as error:
        from_tree(DiffusionConfig, tiny(override))
    assert expected in str(error.value)


def test_a_whitening_vocoder_has_no_bound(tiny_config):
    settings = ["model.mel_channels=4", "model.mel_whitening=true", "data.mel={n_fft: 64, f_max: 4000}"]
    tiny_config(*settings)
    with pytest.raises(UserError, match="validate_bound is true, but"):
        tiny_config(*settings, "training.validate_bound=true")


def test_values_keep_their_types(tiny):
    config = from_tree(DiffusionConfig, tiny("optimizer.lr=1", "model.dt_min=1", "objective=null"))
    assert type(config.optimizer.lr) is float
    assert config.model.arguments["dt_min"] == 1
    assert config.objective.label_dropout == 0.1


def test_a_config_does_not_change(tiny_config):
    config = tiny_config()
    for group, name in [
        (config, "seed"),
        (config.training, "steps"),
        (config.model, "name"),
        (config.model, "d_model"),
    ]:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(group, name, 1)
    config.model.arguments["d_model"] = 1
    assert config.model.arguments["d_model"] == 8


def test_overrides_set_nested_values_and_do_not_change_the_tree():
    tree = {"training": {"steps": 1}}
    changed = apply_overrides(tree, ["training.steps=5", "data.where.speaker=[theo]", "optimizer.lr=1e-4"])
    assert tree == {"training": {"steps": 1}}
    config = from_tree(DiffusionConfig, changed)
    assert config.training.steps == 5
    assert config.data.where == {"speaker": ["theo"]}
    assert config.optimizer.lr == 1e-4


def test_numbers_without_a_point_are_numbers():
    assert read_yaml("[1e-4, 2E3, -1e+2, 3, 1.5]", "x") == [1e-4, 2000.0, -100.0, 3, 1.5]
    assert read_yaml("[e5, 1e, one]", "x") == ["e5", "1e", "one"]


def test_a_key_given_twice_is_refused(tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text("training:\n  steps: 1\n  steps: 2\n")
    with pytest.raises(UserError, match="'steps' is given twice"):
        load_config(DiffusionConfig, file)


@pytest.mark.parametrize(
    ("text", "expected"), [(None, "does not exist: expected a config"), ("- a\n- b\n", "must hold `key: value`")]
)
def test_an_invalid_file_is_named(tmp_path, text, expected):
    file = tmp_path / "config.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=expected):
        load_config(DiffusionConfig, file)


def test_yaml_round_trip(tiny_config):
    config = tiny_config()
    assert from_tree(DiffusionConfig, read_yaml(write_yaml(to_tree(config)), "x")) == config
    assert from_tree(DiffusionConfig, {}) == DiffusionConfig()


@pytest.mark.parametrize("file", sorted(DIFFUSION.glob("*.yaml")), ids=lambda path: path.stem)
def test_published_configs_load(file):
    config = load_config(DiffusionConfig, file, ["data.path=x"])
    assert config.output_dir == f"runs/{file.stem}"
    if file.stem.startswith(("sc09", "ljspeech")):
        assert "official code" in file.read_text()
        assert config.schedule.prediction_type == "epsilon"
        assert config.optimizer.lr == 2e-4


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("sc09-sashimi-d128", 23_470_971),
        ("sc09-sashimi-d64", 7_734_267),
        ("sc09-wavenet", 24_071_681),
        ("ljspeech-vocoder", 3_153_459),
    ],
)
def test_published_configs_have_the_published_size(name, parameters):
    model = create_model(load_config(DiffusionConfig, DIFFUSION / f"{name}.yaml"), None)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_small_vocoder_has_the_documented_size():
    config = load_config(DiffusionConfig, DIFFUSION / "vocoder-small.yaml", ["model.waveform_std=0.1"])
    model = create_model(config, None)
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_345_139
    assert model.config.mel_settings == asdict(MelSettings())


@pytest.mark.parametrize(("name", "parameters"), [("digits-small", 2_280_263), ("digits-small-wavenet", 2_294_913)])
def test_the_backbones_compared_on_digits_have_similar_sizes(name, parameters):
    config = load_config(DiffusionConfig, DIFFUSION / f"{name}.yaml", ["model.waveform_std=0.1"])
    model = create_model(config, [str(digit) for digit in range(10)], [f"speaker {i}" for i in range(6)])
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_a_run_may_be_lengthened_and_moved_but_not_changed(tiny_config):
    stored = tiny_config()
    check_same_run(tiny_config("training.steps=99", "optimizer.lr=1e-5", "data.path=/elsewhere"), stored)
    for name, value in {"seed": 1, "model.d_model": 16, "data.length": 512, "schedule.num_train_timesteps": 50}.items():
        with pytest.raises(UserError, match=f"^{name} is {value}.*resume with {name}="):
            check_same_run(tiny_config(f"{name}={value}"), stored)


def test_null_agrees_with_what_the_data_of_a_run_have_determined(tiny_config):
    check_same_run(tiny_config("model.class_conditional=null"), tiny_config())
    with pytest.raises(UserError, match=r"^model\.class_conditional is False"):
        check_same_run(tiny_config("model.class_conditional=false"), tiny_config())


FIRST_TAKES = {"index": [0, 1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("overrides", "pattern", "speakers", "holdout"),
    [
        ([], "{label}_{speaker}_{index}", "speaker", FIRST_TAKES),
        (["data.pattern={label}-{speaker}-{index}"], "{label}-{speaker}-{index}", "speaker", FIRST_TAKES),
        (["data.pattern={label}_{speaker}"], "{label}_{speaker}", "speaker", None),
        (["data.pattern=null"], None, None, None),
        (["data.pattern='{label}_{take}'", "data.holdout={take: [1]}"], "{label}_{take}", None, {"take": [1]}),
        (["data.pattern={label}_{x}", "data.holdout.x=[1]"], "{label}_{x}", None, FIRST_TAKES | {"x": [1]}),
        (["data.kind=speech_commands"], None, None, None),
        (["data.kind=folder"], "{label}_{speaker}_{index}", "speaker", FIRST_TAKES),
        (["data={kind: folder, pattern: '{label}_{a}'}"], "{label}_{a}", None, None),
    ],
)
def test_settings_of_a_replaced_pattern_are_left_out(overrides, pattern, speakers, holdout):
    """An override is never left out; nor is a group of the file to which an override adds something."""
    data = load_config(DiffusionConfig, DIFFUSION / "digits-small.yaml", overrides).data
    assert (data.pattern, data.speakers, data.holdout) == (pattern, speakers, holdout)


def test_overrides_that_name_fields_of_a_replaced_pattern_are_errors():
    with pytest.raises(UserError, match=r"data\.speakers names the field 'speaker', but the fields are folder"):
        load_config(DiffusionConfig, DIFFUSION / "digits-small.yaml", ["data.pattern=null", "data.speakers=speaker"])
    with pytest.raises(UserError, match=r"data\.pattern is 'x'"):
        load_config(DiffusionConfig, DIFFUSION / "digits-small.yaml", ["data.pattern=x"])


@pytest.mark.parametrize(("scale", "without", "with_labels"), [("null", 1, 2), ("1", 1, 1), ("3", None, 3)])
def test_the_automatic_scale_of_guidance(tiny_config, scale, without, with_labels):
    sampling = tiny_config(f"sampling.guidance_scale={scale}").sampling
    assert sampling.guidance(conditional=True) == with_labels
    if without is not None:
        assert sampling.guidance(conditional=False) == without
        return
    with pytest.raises(UserError, match=r"sampling\.guidance_scale is 3\.0: without classes"):
        sampling.guidance(conditional=False)
