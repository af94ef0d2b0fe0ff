"""Rendering and writing of the report page."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from sashimi_diffusion.output_files import write_output_file
from sashimi_evaluation.html import encode_page, package_file, template_environment
from sashimi_evaluation.report.checks import check_report
from sashimi_evaluation.report.data import ReportData
from sashimi_evaluation.report.media import audio_uri, spectrogram_uri
from sashimi_evaluation.report.plots import class_histogram, likelihood_histogram
from sashimi_evaluation.report.published import GROUPS, WARNING
from sashimi_evaluation.report.tables import (
    class_table,
    confusion_table,
    likelihood_table,
    metric_table,
    published_table,
)


def write_report(path: Path | str, report: ReportData) -> None:
    """Write a report as one HTML file that needs no other file and no network.

    The file contains audio as 16-bit FLAC and spectrograms as WebP: a clip of one second at 16 kHz with its nearest
    training clip takes about 100 kB. Everything except the filters works without JavaScript.

    Args:
        path: the file to write; an existing file is replaced by the complete page.
        report: its content.

    Raises:
        UserError: the data are inconsistent, matplotlib is not installed, or the file cannot be written.
    """
    check_report(report)
    page = template_environment(__package__).get_template("report.html").render(_variables(report))
    write_output_file(Path(path), encode_page(page))


def _variables(report: ReportData) -> dict[str, Any]:
    """Return the variables of the template. It leaves out a section if the variables of the section are empty."""
    methods = sorted(report.methods, key=lambda method: not method.is_reference)  # stable: real clips first
    classified = [method for method in methods if len(method.predictions)]
    with_likelihoods = [method for method in methods if method.log_likelihoods is not None]
    script = package_file(__package__, "report.js")
    return {
        "report": report,
        "methods": methods,
        "style": package_file(__package__, "report.css"),
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        "metrics": metric_table(methods),
        "published_warning": WARNING,
        "published": [published_table(group) for group in GROUPS] if report.classes else [],
        "class_plot": class_histogram(classified, report.classes) if classified else None,
        "classes": class_table(classified, report.classes),
        "confusions": [confusion_table(method, report.classes) for method in classified if method.labels is not None],
        "likelihood_plot": likelihood_histogram(with_likelihoods) if with_likelihoods else None,
        "likelihoods": likelihood_table(with_likelihoods),
        "clip_rows": sorted({clip.row for method in methods for clip in method.clips}, key=lambda row: row or 0),
        "clip_count": sum(len(method.clips) for method in methods),
        "audio_uri": audio_uri,
        "spectrogram_uri": spectrogram_uri,
    }
