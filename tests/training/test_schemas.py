"""Tests of the JSON schemas next to the configs."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sashimi_diffusion.training.autoregressive.config import AutoregressiveConfig
from sashimi_diffusion.training.config import RunConfig, write_schema
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.distillation.config import DistillationConfig
from sashimi_diffusion.training.packaged_configs import CONFIGS, packaged_configs
from sashimi_evaluation.classifiers.training.config import ClassifierConfig
from sashimi_evaluation.commands.train import CONFIGS as CLASSIFIERS

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = {
    "diffusion": CONFIGS / "schemas" / "diffusion.schema.json",
    "distillation": CONFIGS / "schemas" / "distillation.schema.json",
    "autoregressive": CONFIGS / "schemas" / "autoregressive.schema.json",
    "classifier": CLASSIFIERS / "schemas" / "classifier.schema.json",
}
RECIPES = {
    "diffusion": ("train_diffwave_sashimi.py", DiffusionConfig, CONFIGS / "diffusion"),
    "distillation": ("distill_sashimi.py", DistillationConfig, CONFIGS / "distillation"),
    "autoregressive": ("train_autoregressive_sashimi.py", AutoregressiveConfig, CONFIGS / "autoregressive"),
    "classifier": ("train_digit_classifier.py", ClassifierConfig, CLASSIFIERS),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_schema_is_up_to_date(name: str) -> None:
    recipe, kind, _ = RECIPES[name]
    command = f"python recipes/{recipe} --schema > {SCHEMAS[name].relative_to(ROOT)}"
    stored = json.loads(SCHEMAS[name].read_text())
    fresh = json.loads(write_schema(kind))
    if stored["$comment"] != fresh["$comment"]:
        pytest.skip(f"the committed schema was {stored['$comment']}, this one was {fresh['$comment']}")
    assert stored == fresh, f"run {command}"


def test_the_command_prints_the_schema(recipe_script: Any) -> None:
    code, out, err = recipe_script("train_autoregressive_sashimi.py").run("--schema")
    assert code == 0, err
    assert out == write_schema(AutoregressiveConfig)


def groups(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"the config": schema, **schema["$defs"]}


@pytest.mark.parametrize("kind", [kind for _, kind, _ in RECIPES.values()])
def test_every_setting_has_a_description(kind: type[RunConfig]) -> None:
    schema = kind.model_json_schema()
    for name, group in groups(schema).items():
        assert group["description"], name
        for key, field in group.get("properties", {}).items():
            assert "description" in field or "$ref" in field, f"{name}.{key}"


def test_arguments_of_the_network_have_types() -> None:
    sashimi, wavenet = DiffusionConfig.model_json_schema()["$defs"]["DenoiserConfig"]["anyOf"]
    assert sashimi["properties"]["d_model"]["type"] == "integer"
    assert {"type": "null"} in sashimi["properties"]["waveform_std"]["anyOf"]
    assert "sample_rate" not in sashimi["properties"]  # the data determine it
    assert "dilation_cycle" in wavenet["properties"]
    assert "dilation_cycle" not in sashimi["properties"]
    assert (sashimi.get("required"), wavenet["required"]) == (None, ["name"])
    assert sashimi["properties"].keys() >= {"name", "class_conditional"}


FILES = [(name, file) for name, (_, _, folder) in RECIPES.items() for file in packaged_configs(folder).values()]


@pytest.mark.parametrize(("name", "file"), FILES, ids=[f"{name}-{file.stem}" for name, file in FILES])
def test_every_config_names_the_schema_that_it_follows(name: str, file: Path) -> None:
    first = file.read_text().splitlines()[0]
    prefix = "# yaml-language-server: $schema="
    assert first.startswith(prefix)
    path = (file.parent / first.removeprefix(prefix)).resolve()
    assert path == SCHEMAS[name]
    schema = json.loads(path.read_text())
    tree = yaml.safe_load(file.read_text())
    assert tree.keys() <= schema["properties"].keys()
    for key, group in tree.items():
        reference = schema["properties"][key].get("$ref", "").removeprefix("#/$defs/")
        if reference:
            form = schema["$defs"][reference]
            if "anyOf" in form:
                form = next(part for part in form["anyOf"] if part["properties"]["name"]["const"] == group["name"])
            assert group.keys() <= form["properties"].keys()
            assert form["additionalProperties"] is False
