"""Tests of the HTML report: content, accessibility, and that it loads no other resources."""

import base64
import io
import itertools
import re
import sys
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import soundfile
from jinja2 import UndefinedError
from markupsafe import Markup

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.html import template_environment
from sashimi_evaluation.metrics.intervals import Interval
from sashimi_evaluation.metrics.metric import Difference, Metric
from sashimi_evaluation.report import Classifier, Clip, Method, Neighbor, ReportData, write_report
from sashimi_evaluation.report.media import audio_uri
from sashimi_evaluation.report.published import GROUPS, WARNING

pytest.importorskip("matplotlib", reason="the plots need matplotlib: pip install matplotlib")

RATE = 8000
CLASSES = ("zero", "one", "two")
VOID = {"img", "input", "meta"}


class Page(HTMLParser):
    """Parser that keeps every element with its attributes and text; it fails if elements are closed out of order."""

    def __init__(self, source: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[tuple[str, int]] = []
        self.feed(source)
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]):
        self.elements.append((tag, dict(attributes)))
        self.texts.append("")
        if tag not in VOID:
            self._open.append((tag, len(self.elements) - 1))

    def handle_endtag(self, tag: str):
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str):
        for _, index in self._open:
            self.texts[index] += re.sub(r"\s*\n\s*", "", data)  # line breaks of the templates

    def all(self, tag: str, **wanted: str) -> list[tuple[dict[str, str | None], str]]:
        found = zip(self.elements, self.texts, strict=True)
        return [
            (attributes, text)
            for (name, attributes), text in found
            if name == tag and all(attributes.get(key) == value for key, value in wanted.items())
        ]


def tone(frequency: float) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * frequency * np.arange(RATE // 8) / RATE)).astype(np.float32)


def clip(title: str, predicted: int, label: int | None, neighbor: bool = True) -> Clip:
    nearest = Neighbor(f"train of {title}", tone(700), RATE, 2.5) if neighbor else None
    return Clip(title, tone(500), RATE, predicted, 0.75, label, nearest)


@pytest.fixture
def report() -> ReportData:
    ours = Method(
        "ours",
        [clip("a.wav", 0, 0), clip("b.wav", 2, 1), clip("c.wav", 1, None)],
        [
            Metric(
                "fid",
                "FID",
                1.5,
                Interval(1.25, 1.75),
                "lower",
                "too few samples",
                Difference(-0.5, Interval(-0.75, 0.25)),
            ),
            Metric("is", "IS", 8.0, better="higher"),
        ],
        np.array([0, 0, 1, 2]),
        np.array([0, 1, 1, 2]),
        np.array([-10.0, -12.0, -11.0, -np.inf]),
    )
    theirs = Method(
        "theirs",
        [clip("d.wav", 1, 1)],
        [
            Metric("fid", "FID", 2.5, Interval(2.25, 2.75), "lower", "too few samples"),
            Metric("mcs", "mCS", None, note="no labels"),
        ],
        np.array([1, 1, 1]),
    )
    real = Method("real", [clip("r.wav", 0, 0, neighbor=False)], [], np.array([0, 1, 2]), is_reference=True)
    return ReportData(
        "Report of a test",
        CLASSES,
        [ours, theirs, real],
        Classifier("digits", "0123abcd", 0.973, "held-out speakers"),
        "sashimi-evaluate ours theirs",
        {"numpy": "2.0"},
        ["The reference is small."],
        {"Seed": "7"},
    )


@pytest.fixture
def written(tmp_path: Path):
    def write(report: ReportData) -> str:
        write_report(tmp_path / "report.html", report)
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return write


def test_the_header_lists_the_evaluated_sets_and_settings(written, report: ReportData):
    header = Page(written(report)).all("header")[0][1]
    for text in (
        "Report of a test", "real: 3 clips", "ours: 4 clips", "digits, accuracy 97.3 % (held-out speakers)", "0123abcd",
        "sashimi-evaluate ours theirs", "numpy 2.0", "The reference is small.", "Seed",
    ):  # fmt: skip
        assert text in header


def test_metrics_with_intervals_and_notes(written, report: ReportData):
    page = Page(written(report))
    table = page.all("div", **{"aria-label": "Metrics"})[0][1]
    difference = "Δ \N{MINUS SIGN}0.5000, \N{MINUS SIGN}0.7500 to 0.2500"
    assert re.search(rf"FID↓ \(lower is better\)1\.50011\.250 to 1\.750{difference}2\.50012\.250 to 2\.750", table)
    assert "Δ: the difference from the held-out recordings" in table
    assert "mCS\N{EN DASH}\N{EN DASH}2" in table  # one method lacks the metric, the other has no value but a note
    assert [text for _, text in page.all("ol")] == ["too few samplesno labels"]
    best = {text for _, text in page.all("b")}
    assert "1.500" in best
    assert "2.500" not in best
    assert "8.000" not in best  # the only value of its row, so not marked as the best


def test_published_results_come_with_the_warning(written, report: ReportData):
    page = Page(written(report))
    section = page.all("section", id="published")[0][1]
    assert WARNING in section
    assert all(group.classifier in section and group.source in section for group in GROUPS)
    assert re.search(r"SaShiMi \(original\)4\.1 M1\.8911\.994\.1224\.570\.90", section)
    assert "Mamba 24.3M24.3 M1.8600.677.33144.90.36" in section
    by_class = [text for _, text in page.all("table") if "FID by class" in text]
    assert len(by_class) == 1  # a group omits columns without values


def test_confusions_count_labels_against_predictions(written, report: ReportData):
    tables = Page(written(report)).all("table", **{"class": "confusion"})
    assert len(tables) == 1  # only one method has labels
    assert tables[0][1].endswith("zero1··one11·two··1")
    assert "3 of 4 clips are classified as labeled (75.0 %)" in tables[0][1]


def test_classes_and_likelihoods(written, report: ReportData):
    page = Page(written(report))
    assert "zero33.350.00.0" in page.all("section", id="classes")[0][1]  # real, ours, theirs
    assert "ours-11.00-12.00-10.00" in page.all("section", id="likelihoods")[0][1].replace("\N{MINUS SIGN}", "-")
    plots = [attributes for attributes, _ in page.all("img", **{"class": "plot"})]
    assert len(plots) == 2
    svg = base64.b64decode(plots[1]["src"].partition(",")[2]).decode()
    assert "prefers-color-scheme:dark" in svg
    style, _, drawing = svg.partition("</style>")
    assert drawing.count("var(--c") > 20
    # Fixed colors would ignore the color scheme of the reader.
    assert not any(color in drawing for color in re.findall(r"#\w{6}", style))
    assert "log-likelihood of a clip (nats)" in svg


def test_parts_without_data_are_left_out(written, report: ReportData):
    silent = [replace(method, labels=None, log_likelihoods=None) for method in report.methods]
    page = Page(written(replace(report, methods=silent, warnings=())))
    assert page.all("section", id="confusions") == page.all("section", id="likelihoods") == []
    assert "Warnings" not in page.all("header")[0][1]
    assert {attributes["href"] for attributes, _ in page.all("a") if attributes["href"][1:5] != "note"} == {
        "#metrics", "#published", "#classes", "#clips"
    }  # fmt: skip


def test_clips_are_arranged_by_class_and_method_with_real_ones_first(written, report: ReportData):
    page = Page(written(report))
    table = page.all("table", id="clip-table")[0][1]
    assert re.search(r"Classrealourstheirs", table)
    rows = {row["data-class"]: text for row, text in page.all("tr") if "data-class" in row}
    assert list(rows) == ["0", "1"]
    assert re.search(r"^zero.*r\.wav.*a\.wav.*none$", rows["0"])
    assert re.search(r"^one none.*b\.wav.*c\.wav.*d\.wav".replace(" ", ""), rows["1"])
    wrong = [text for attributes, text in page.all("div") if "data-wrong" in attributes]
    assert len(wrong) == 1
    assert "classified as two 0.75 ✗ not one" in wrong[0]
    assert "train of b.wav" in wrong[0]
    assert "distance 2.5" in wrong[0]


def test_elements_have_accessible_names(written, report: ReportData):
    source = written(report)
    page = Page(source)
    assert page.elements[0] == ("html", {"lang": "en"})
    labels = [attributes["aria-label"] for attributes, _ in page.all("audio")]
    assert len(labels) == 5 + 4
    assert len(set(labels)) == len(labels)
    assert all("controls" in attributes for attributes, _ in page.all("audio"))
    assert all(len(attributes["alt"]) > 10 for attributes, _ in page.all("img"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    targets = [attributes["href"].removeprefix("#") for attributes, _ in page.all("a")]
    targets += [attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes]
    assert set(targets) <= set(ids)
    for attributes, _ in page.all("th"):
        assert attributes["scope"] in ("row", "col")
    assert len(page.all("caption")) == len(page.all("table")) > 5
    controls = len(page.all("select")) + len(page.all("input"))
    assert controls == len(page.all("label")) == 3
    assert len(re.findall(r"<label>[^<]*<(?:select|input)", source)) == controls
    assert "hidden" in page.all("form")[0][0]  # until the script runs
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_no_resource_is_loaded(written, report: ReportData):
    page = Page(written(report))
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "base")
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"url\(|@import", page.all("style")[0][1])
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0][0]["content"]
    assert policy.startswith("default-src 'none';")


def test_text_from_outside_is_escaped(written, report: ReportData):
    nasty = '<script>alert("1")</script>&amp;\'$x_1$'
    ours, *others = report.methods
    ours = replace(ours, name=nasty, clips=[replace(clip(nasty + "\udcff", 1, 0), log_likelihood=-3.0)])
    ours = replace(ours, metrics=[Metric("nasty", nasty, 1.0, note=nasty)])
    page = Page(
        written(
            replace(
                report, title=nasty, classes=(nasty, "one", "two"), methods=[ours, *others], command=nasty,
                warnings=[nasty], details={nasty: nasty}, versions={nasty: nasty}, classifier=Classifier(nasty, nasty),
            )
        )
    )  # fmt: skip
    assert len(page.all("script")) == 1
    assert page.all("h1")[0][1] == nasty
    assert page.all("td", **{"data-name": nasty})
    assert any(attributes["aria-label"] == f"{nasty}: {nasty}?" for attributes, _ in page.all("audio"))


def test_audio_is_encoded_losslessly_and_clipped():
    waveform = np.array([0.0, 0.5, -1.0, 3.0, -3.0, np.nan, np.inf, 2.0**-15])
    encoded = base64.b64decode(audio_uri(waveform, 22050).removeprefix("data:audio/flac;base64,"))
    samples, rate = soundfile.read(io.BytesIO(encoded), dtype="float64")
    assert rate == 22050
    np.testing.assert_array_equal(samples * 2**15, [0, 2**14, -(2**15), 2**15 - 1, -(2**15), 0, 0, 1])


def test_a_hundred_clips_with_neighbors_fit_in_fifteen_megabytes(tmp_path: Path, report: ReportData):
    generator = np.random.default_rng(0)

    def noise() -> np.ndarray:  # does not compress
        return generator.uniform(-1, 1, 16000).astype(np.float32)

    clips = [
        Clip(f"{number}.wav", noise(), 16000, number % 3, 0.5, 0, Neighbor("train.wav", noise(), 16000, 1.0))
        for number in range(100)
    ]
    method = replace(report.methods[0], clips=clips)
    write_report(tmp_path / "report.html", replace(report, methods=[method]))
    assert (tmp_path / "report.html").stat().st_size < 15e6


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of WCAG 2 for two colors such as #23262b."""

    def luminance(color: str) -> float:
        channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize(("package", "name"), [("report", "report.css"), ("listening_test", "test.css")])
def test_text_has_enough_contrast_in_light_and_dark(package: str, name: str):
    style = files(f"sashimi_evaluation.{package}").joinpath(name).read_text(encoding="utf-8")
    schemes = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    assert len(schemes) == 2
    for colors in schemes:
        pairs = [(text, "paper") for text in ("ink", "soft", "accent", "alarm", "caution")]
        pairs += [(text, "tint") for text in ("ink", "soft", "caution")]
        pairs += [("on-accent", "accent")] if "on-accent" in colors else []
        assert {pair: contrast(colors[pair[0]], colors[pair[1]]) for pair in pairs if
                contrast(colors[pair[0]], colors[pair[1]]) < 4.5} == {}  # fmt: skip


def test_the_same_report_is_the_same_file(written, report: ReportData):
    assert written(report) == written(report)


def test_templates_come_from_a_package_in_an_archive(tmp_path: Path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as archive:
        archive.writestr("archived_pages/__init__.py", "")
        archive.writestr("archived_pages/templates/page.html", "<p>{{ text }}</p>")
    monkeypatch.syspath_prepend(str(tmp_path / "package.zip"))
    template = template_environment("archived_pages").get_template("page.html")
    assert template.render(text='a<"b') == "<p>a&lt;&#34;b</p>"
    assert template.render(text=Markup("<b>x</b>")) == "<p><b>x</b></p>"
    with pytest.raises(UndefinedError):
        template.render()


def method_with(report: ReportData, **changes) -> ReportData:
    return replace(report, methods=[replace(report.methods[0], **changes)])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda report: replace(report, methods=[]), "at least one method"),
        (lambda report: replace(report, classes=()), "names of the classes"),
        (lambda report: replace(report, methods=[report.methods[0]] * 2), "two methods are called 'ours'"),
        (lambda report: method_with(report, predictions=np.array([0, 3, 0, 0])), "from 0 to 2"),
        (lambda report: method_with(report, predictions=np.zeros((4, 1), int)), r"shape \(N,\)"),
        (lambda report: method_with(report, labels=np.array([0, 1])), r"labels of shape \(2,\)"),
        (lambda report: method_with(report, labels=np.array([0.5, 1, 1, 1])), "labels of 'ours'"),
        (lambda report: method_with(report, log_likelihoods=np.zeros(9)), "log_likelihoods of shape"),
        (lambda report: method_with(report, clips=[replace(clip("x", 0, 0), waveform=np.zeros(0))]), "clip 'x'.*empty"),
        (lambda report: method_with(report, clips=[clip("x", 0, -1)]), "class -1"),
    ],
)
def test_contradictory_reports_are_refused(tmp_path: Path, report: ReportData, change, complaint: str):
    with pytest.raises(UserError, match=complaint):
        write_report(tmp_path / "report.html", change(report))
    assert not (tmp_path / "report.html").exists()


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path, report: ReportData):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"cannot write .*file/report\.html: File exists"):
        write_report(tmp_path / "file" / "report.html", report)
    write_report(tmp_path / "new" / "folder" / "report.html", report)  # its folder is created


def test_without_matplotlib_the_error_names_it(tmp_path: Path, report: ReportData, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        write_report(tmp_path / "report.html", report)
