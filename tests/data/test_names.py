"""Tests of the fields in file names and of the selection of files by them."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sashimi_diffusion.data.names import field_names, natural_order, read_fields, select
from sashimi_diffusion.errors import UserError

ROOT = Path("root")


def fields_of(name: str, pattern: str | None) -> dict[str, str] | None:
    fields, bad = read_fields([ROOT / name], ROOT, pattern)
    assert len(fields) + len(bad) == 1
    return fields.get(ROOT / name)


@pytest.mark.parametrize(
    ("name", "pattern", "fields"),
    [
        ("7_jackson_32.wav", "{label}_{speaker}_{index}", dict(label="7", speaker="jackson", index="32")),
        ("a/7_jackson_32.wav", "{label}_{speaker}_{index}", dict(folder="a", label="7", speaker="jackson", index="32")),
        ("x/jackson/7_32.wav", "{speaker}/{label}_{index}", dict(folder="x", speaker="jackson", label="7", index="32")),
        ("take.1 (b).flac", "take.{number} ({part})", dict(number="1", part="b")),
        ("a/b/c.wav", None, dict(folder="a")),
        ("c.wav", None, {}),
        ("7_jackson.wav", "{label}_{speaker}_{index}", None),
        ("_jackson_1.wav", "{label}_{speaker}_{index}", None),
        ("takex1 (b).flac", "take.{number} ({part})", None),
        ("7_32.wav", "{speaker}/{label}_{index}", None),
    ],
)
def test_fields(name: str, pattern: str | None, fields: dict[str, str] | None):
    assert fields_of(name, pattern) == fields


@given(st.lists(st.text("abcXYZ019-", min_size=1), min_size=3, max_size=3))
def test_fields_are_read_back(values: list[str]):
    fields = fields_of("_".join(values) + ".wav", "{label}_{speaker}_{index}")
    assert [fields[name] for name in ("label", "speaker", "index")] == values


@given(
    st.lists(st.text("ab_", max_size=2), min_size=2, max_size=5),
    st.lists(st.text("ab_", min_size=1, max_size=12), min_size=1, max_size=2),
    st.integers(0, 4),
)
def test_fields_are_those_of_the_regular_expression(texts: list[str], names: list[str], slash: int):
    """Every field has as few characters as possible, the first fields first."""
    if slash < len(texts):
        texts[slash] += "/"
    pattern = texts[0] + "".join(f"{{f{number}}}{text}" for number, text in enumerate(texts[1:]))
    expression = re.escape(texts[0]) + "".join(
        f"(?P<f{number}>[^/]+?){re.escape(text)}" for number, text in enumerate(texts[1:])
    )
    match = re.fullmatch(expression, "/".join(["x", *names][-pattern.count("/") - 1 :]))
    fields = fields_of("/".join(["x", *names]) + ".wav", pattern)
    assert fields == (None if match is None else {"folder": "x", **match.groupdict()})


def test_a_pattern_of_many_fields_takes_no_power_of_the_length():
    """The regular expression of this pattern tries about 200^24 ways."""
    pattern = "".join(f"{{{letter}}}" for letter in "abcdefghijklmnopqrstuvwx") + "-"
    assert fields_of("a" * 200 + ".wav", pattern) is None
    assert fields_of("a" * 200 + "-.wav", pattern)["x"] == "a" * 177


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "name",
        "{label",
        "{}",
        "{0}",
        "{a}_{a}",
        "{folder}_{a}",
        "a}",
        "{x}_{a:}{a }",
        "{a: b}",
        "{a!r}",
        "{a:}",
        "{a!r:>3}",
        "{a:{b}}",
        "{a.b}",
        "{a[0]}",
        "{a }",
    ],
)
def test_patterns_that_cannot_be_used(pattern: str):
    with pytest.raises(UserError, match=r"file name pattern .* such as \{label\}"):
        field_names(pattern)


def test_field_names():
    assert field_names("{label}_{speaker}") == ["folder", "label", "speaker"]
    assert field_names(None) == ["folder"]


PEOPLE = {Path(f"{d}_{s}"): {"label": str(d), "speaker": s} for d in range(3) for s in ("ann", "bob", "cem")}
NAMES = ["folder", "label", "speaker"]


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ({}, list(PEOPLE)),
        ({"speaker": "ann"}, [Path("0_ann"), Path("1_ann"), Path("2_ann")]),
        ({"label": 1}, [Path("1_ann"), Path("1_bob"), Path("1_cem")]),
        ({"label": [0, "2"], "speaker": ("ann", "cem")}, [Path(p) for p in ("0_ann", "0_cem", "2_ann", "2_cem")]),
    ],
)
def test_select(wanted: dict, chosen: list[Path]):
    assert select(PEOPLE, wanted, NAMES, "where") == chosen


def test_select_names_the_nearest_field_and_value():
    with pytest.raises(UserError, match=r"where names the field 'speeker'.*did you mean 'speaker'"):
        select(PEOPLE, {"speeker": "ann"}, NAMES, "where")
    with pytest.raises(UserError, match=r"holdout asks for speaker 'anna', but there are ann, bob, cem.*mean 'ann'"):
        select(PEOPLE, {"speaker": ["bob", "anna"]}, NAMES, "holdout")


def test_natural_order():
    assert sorted(["10", "9", "b", "a10", "a9", "1"], key=natural_order) == ["1", "9", "10", "a9", "a10", "b"]
    assert sorted(["012", "2", "0", "11"], key=natural_order) == ["0", "2", "11", "012"]


def test_the_natural_order_of_unusual_digits():
    many = "9" * 5000  # more digits than int() reads
    arabic = "\N{ARABIC-INDIC DIGIT ONE}\N{ARABIC-INDIC DIGIT TWO}"
    assert sorted([many, "x²", "²", arabic, "11", "13"], key=natural_order) == ["11", arabic, "13", many, "x²", "²"]


def test_names_in_messages_are_escaped():
    fields, bad = read_fields([ROOT / "\x1b[31m.wav"], ROOT, "{label}_{take}")
    assert not fields
    assert list(bad.values()) == ["its name is not of the form {label}_{take}"]
    with pytest.raises(UserError) as caught:
        select({Path("a"): {"label": "\x1b[31m\udce9"}}, {"label": "b"}, ["label"], "where")
    assert str(caught.value).isprintable()
    assert r"there are \x1b[31m\udce9" in str(caught.value)
