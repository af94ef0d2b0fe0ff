"""Tests of loading feature extractors: only what can be an extractor is called."""

import sys
from pathlib import Path

import pytest

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.extractors import load_extractor

MODULE = """
import os
from os import getcwd
from posixpath import expanduser
from pathlib import Path

ran = []


class Extractor:
    name, sample_rate, fingerprint = "mine", 16000, "1"

    def features(self, audio, rate):
        return audio


class WithoutFeatures:
    def __init__(self):
        ran.append("WithoutFeatures")


class WithRate(Extractor):
    def __init__(self, rate=10**12):
        self.sample_rate = rate


class WithNumber(Extractor):
    fingerprint = 3


def create():
    return Extractor()


def nothing():
    return None


def with_arguments(name):
    ran.append("with_arguments")


def failing():
    raise RuntimeError("no weights")


def leaving():
    raise SystemExit(0)


instance = Extractor()
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)")
    (tmp_path / "damaged.py").write_text("def")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("name", ["Extractor", "create"])
def test_a_class_or_a_function_creates_an_extractor(name: str):
    assert load_extractor(f"mine:{name}").name == "mine"


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("mine", "expected package.module:function"),
        (":create", "expected package.module:function"),
        ("./mine.py:create", "expected package.module:function"),
        ("mine:create()", "expected package.module:function"),
        ("os:system", "os is no module with feature extractors"),
        ("os.path:exists", "os is no module with feature extractors"),
        ("sys:exit", "sys is no module with feature extractors"),
        ("builtins:input", "builtins is no module with feature extractors"),
        ("antigravity:fly", "antigravity is no module with feature extractors"),
        ("__main__:main", "__main__ is no module with feature extractors"),
        ("sashimi_evaluation.commands.evaluate:main", "sashimi_evaluation is no module with feature extractors"),
        ("nowhere_at_all:create", r"cannot import nowhere_at_all \(ModuleNotFoundError"),
        ("leaves:create", r"cannot import leaves \(SystemExit"),
        ("damaged:create", r"cannot import damaged \(SyntaxError"),
        ("mine:absent", "has no attribute 'absent'"),
        ("mine:os", "is a module: expected a function or a class"),
        ("mine:ran", "is a list: expected a function or a class"),
        ("mine:instance", "is a Extractor: expected a function or a class"),
        ("mine:getcwd", "is a builtin_function_or_method: expected a function or a class"),
        ("mine:expanduser", "is defined in posixpath: expected a function of mine itself"),
        ("mine:Path", "is defined in pathlib.*: expected a function of mine itself"),
        ("mine:WithoutFeatures", r"is a class without the method features\(audio, rate\)"),
        ("mine:with_arguments", "takes arguments .missing a required argument: 'name'"),
        ("mine:failing", r"mine:failing failed \(RuntimeError: no weights\)"),
        ("mine:leaving", r"mine:leaving failed \(SystemExit: 0\)"),
        ("mine:nothing", "returned NoneType, which lacks one of name, sample_rate"),
        ("mine:WithRate", "has a sample rate that is no whole number of Hz from 100 to 1,000,000"),
        ("mine:WithNumber", "has no text as its fingerprint"),
    ],
)
def test_everything_else_is_refused(location: str, message: str):
    with pytest.raises(UserError, match=message):
        load_extractor(location)
    assert getattr(sys.modules.get("mine"), "ran", []) == []
