"""Putting a report together and writing it."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.report.checks import check_report
from sashimi_evaluation.report.clips import clip_table, filter_form
from sashimi_evaluation.report.data import Method, ReportData
from sashimi_evaluation.report.html import Markup, element, join, packaged
from sashimi_evaluation.report.plots import class_histogram, likelihood_histogram
from sashimi_evaluation.report.published import GROUPS, WARNING
from sashimi_evaluation.report.tables import (
    anchor_table,
    class_table,
    confusion_table,
    likelihood_table,
    metric_table,
)


def write_report(path: Path | str, report: ReportData) -> None:
    """Writes a report as one HTML file that needs no other file and no network.

    Sound is inside it as 16-bit FLAC, spectrograms as WebP: a clip of one second at 16 kHz with its nearest training
    clip takes about 100 kB. Everything but the filters works without JavaScript.

    Args:
        path: the file to write; an existing one is replaced.
        report: what it shows.

    Raises:
        UserError: the data contradict themselves, matplotlib is not installed, or the file cannot be written.
    """
    check_report(report)
    page = _page(report)
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def _page(report: ReportData) -> str:
    methods = sorted(report.methods, key=lambda method: not method.is_reference)  # stable: real clips first
    report = replace(report, methods=tuple(methods))
    script, style = packaged(__package__, "report.js"), packaged(__package__, "report.css")
    sections = _sections(report)
    links = [element("a", title, href=f"#{name}") for name, title, _ in sections]
    body = element(
        "body",
        element("header", element("h1", report.title), _warnings(report.warnings), _facts(report)),
        element("nav", *links, aria_label="Sections"),
        element("main", *(_section(name, title, content) for name, title, content in sections)),
        element("script", script),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", report.title),
        element("style", style),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _policy(script: str) -> str:
    """Only what the page carries inside itself is loaded, and only its own script runs."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        f"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


def _sections(report: ReportData) -> list[tuple[str, str, Markup]]:
    sections = [("figures", "Figures", metric_table(report.methods))]
    tables = [anchor_table(group) for group in GROUPS]
    sections.append(("published", "Published figures", join(element("p", WARNING, class_="caution"), *tables)))
    scored = [method for method in report.methods if len(method.predictions)]
    if scored:
        sections.append(("classes", "Classes", _classes(scored, report.classes)))
    labelled = [method for method in scored if method.labels is not None]
    if labelled:
        tables = [confusion_table(method, report.classes) for method in labelled]
        sections.append(("confusions", "Confusions", join(*tables)))
    likely = [method for method in report.methods if method.log_likelihoods is not None]
    if likely:
        sections.append(("likelihoods", "Likelihoods", join(likelihood_histogram(likely), likelihood_table(likely))))
    sections.append(("clips", "Clips", _clips(report)))
    return sections


def _section(name: str, title: str, content: Markup) -> Markup:
    return element(
        "section", element("h2", title, id=f"{name}-title"), content, id=name, aria_labelledby=f"{name}-title"
    )


def _warnings(warnings: Sequence[str]) -> Markup:
    if not warnings:
        return Markup("")
    items = [element("li", warning) for warning in warnings]
    return element(
        "section",
        element("h2", "Warnings", id="warnings-title"),
        element("ul", *items),
        class_="warnings",
        aria_labelledby="warnings-title",
    )


def _facts(report: ReportData) -> Markup:
    classifier = report.classifier
    accuracy = "" if classifier.accuracy is None else f", accuracy {100 * classifier.accuracy:.1f} %"
    note = f" ({classifier.accuracy_note})" if classifier.accuracy_note else ""
    facts: list[tuple[str, str]] = [
        ("Scored", "; ".join(f"{method.name}: {_count(method)}" for method in report.methods)),
        ("Classifier", join(f"{classifier.name}{accuracy}{note}, ", element("code", classifier.hash))),
        *report.details.items(),
        ("Command", element("code", report.command)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
    ]
    return element("dl", *(element("div", element("dt", name), element("dd", fact)) for name, fact in facts))


def _count(method: Method) -> str:
    count = len(method.predictions)
    return f"{count:,} clip{'' if count == 1 else 's'}"


def _classes(methods: Sequence[Method], classes: Sequence[str]) -> Markup:
    values = element("details", element("summary", "The values as a table"), class_table(methods, classes))
    return join(class_histogram(methods, classes), values)


def _clips(report: ReportData) -> Markup:
    shown = sum(len(method.clips) for method in report.methods)
    explanation = (
        "A clip stands in the row of its label or, where none is known, of the class it is heard as. Spectrograms "
        "reach from 0 Hz to half the sample rate, and 80 dB down from a clip's own maximum."
    )
    count = element("p", f"All {shown} clips are shown.", id="count", role="status")
    return join(element("p", explanation), filter_form(report), count, clip_table(report))
