"""Tests of the report and of the listening test in a real browser."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sashimi_evaluation.listening_test import score_listening_test, write_listening_test
from sashimi_evaluation.metrics.intervals import Interval
from sashimi_evaluation.metrics.metric import Metric
from sashimi_evaluation.report import Classifier, Clip, Method, Neighbor, ReportData, write_report
from tests.browser import Browser, needs_chromium

pytestmark = needs_chromium
RATE = 8000


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


def tone(frequency: float, seconds: float = 0.5) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(int(RATE * seconds)) / RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def method(name: str, predicted: list[int], is_reference: bool = False) -> Method:
        clips = [
            Clip(
                f"{label}.wav",
                tone(300 + 100 * label),
                RATE,
                prediction,
                0.9,
                label,
                None if is_reference else Neighbor(f"train-{label}.wav", tone(500), RATE, 1.5),
            )
            for label, prediction in enumerate(predicted)
        ]
        metrics = [] if is_reference else [Metric("fid", "FID", 1.25, Interval(1.0, 1.5), "lower")]
        return Method(name, clips, metrics, np.array(predicted), np.arange(3), is_reference=is_reference)

    path = tmp_path_factory.mktemp("report") / "report.html"
    methods = [method("ours", [0, 2, 2]), method("theirs", [1, 1, 0]), method("real", [0, 1, 2], is_reference=True)]
    classifier = Classifier("digits", "abc123", 0.97)
    write_report(path, ReportData("A report", ["zero", "one", "two"], methods, classifier, "command", {"numpy": "2"}))
    return path


SHOWN = "[...document.querySelectorAll('.clip')].filter(f => f.checkVisibility()).length"


def choose(browser: Browser, control: str, value: str) -> None:
    browser.run(f"document.getElementById('{control}').value = '{value}'")
    browser.run(f"document.getElementById('{control}').dispatchEvent(new Event('change', {{bubbles: true}}))")


def test_players_of_a_report_play(browser: Browser, report: Path):
    browser.open(report)
    assert browser.run("document.querySelectorAll('audio').length") == 9 + 6
    for number in (0, 4):  # a sample and a nearest neighbor
        player = f"document.querySelectorAll('audio')[{number}]"
        browser.run(f"{player}.play()")
        browser.until(f"{player}.currentTime > 0.1")
        assert browser.run(f"{player}.duration") == pytest.approx(0.5, abs=0.01)
    assert browser.run("document.querySelectorAll('audio')[0].paused")  # one at a time
    browser.until("document.querySelectorAll('audio')[4].ended")
    assert browser.errors == []


def test_filters_of_a_report(browser: Browser, report: Path):
    browser.open(report)
    assert browser.run(SHOWN) == 9
    choose(browser, "class", "1")
    assert browser.run(SHOWN) == 3
    choose(browser, "method", "1")  # real clips come first, so this is "ours"
    assert browser.run(SHOWN) == 1
    assert browser.run("document.getElementById('count').textContent") == "Showing 1 of 9 clips."
    choose(browser, "class", "")
    assert browser.run(SHOWN) == 3
    browser.run("document.getElementById('wrong').focus()")
    browser.press(" ", " ")
    assert browser.run(SHOWN) == 1
    assert browser.run("[...document.querySelectorAll('tbody tr')].filter(r => r.querySelector('.clip'))"
                       ".filter(r => r.checkVisibility()).length") == 1  # fmt: skip
    choose(browser, "method", "0")
    assert browser.run(SHOWN) == 0
    assert browser.run("document.getElementById('count').textContent") == "No clip of 9 matches these filters."
    assert browser.errors == []


def test_a_report_makes_no_network_requests(browser: Browser, report: Path):
    browser.requests.clear()
    browser.open(report)
    browser.run("document.querySelectorAll('audio')[0].play()")
    assert [url for url in browser.requests if not url.startswith(("data:", "file:"))] == []
    assert any(url.startswith("file:") for url in browser.requests)
    assert browser.run("[...document.images].every(image => image.complete && image.naturalWidth > 50)")
    assert browser.errors == []


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_a_report_is_not_wider_than_the_window(browser: Browser, report: Path, width: int):
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
    browser.open(report)
    assert browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert browser.run("document.documentElement.clientWidth") == pytest.approx(width, abs=20)  # minus a scroll bar
    browser.call("Emulation.clearDeviceMetricsOverride")


def answer_everything(browser: Browser, quality: int) -> None:
    """Rate the current item: play its clips, choose the answers and go on to the next item with the keyboard."""
    browser.run("Promise.all([...document.querySelectorAll('audio')].map(a => a.play().catch(() => null)))")
    for rating, value in {
        "quality": quality,
        "intelligibility": 2,
        "transcription": "none",
        "diversity": 5,
    }.items():
        browser.run(f"document.querySelector('input[name={rating}][value=\"{value}\"]')?.click()")
    browser.run("document.getElementById('next').focus()")
    browser.press("Enter", "\r")


def test_a_whole_listening_test(browser: Browser, tmp_path: Path):
    files = [tmp_path / f"{number}.wav" for number in range(4)]
    for number, file in enumerate(files):
        soundfile.write(file, tone(300 + 100 * number, 0.3), RATE)
    labels = {files[0]: 3}
    key = write_listening_test(tmp_path / "test", {"ours": files[:2], "real": files[2:]}, 0, 2, labels=labels)
    page = tmp_path / "test" / "index.html"
    browser.open(page)
    browser.run("document.getElementById('rater').focus()")
    browser.call("Input.insertText", text="r-1")
    browser.press("Enter", "\r")
    browser.until("document.getElementById('item-title').textContent === 'Recording (1 of 6)'")
    assert browser.run("document.activeElement.id") == "item-title"

    browser.run("document.getElementById('next').click()")
    assert "listen" in browser.run("document.getElementById('problem').textContent")
    player = "document.querySelector('audio')"
    browser.run(f"{player}.play()")
    browser.until(f"{player}.currentTime > 0.05")
    assert browser.run(f"{player}.duration") == pytest.approx(0.3, abs=0.01)
    browser.run("document.getElementById('next').click()")
    assert "every question" in browser.run("document.getElementById('problem').textContent")
    answer_everything(browser, 4)
    browser.until("document.getElementById('item-title').textContent === 'Recording (2 of 6)'")
    answer_everything(browser, 3)

    browser.open(page)  # the page was closed and opened again: the test continues after the last rated item
    browser.run("document.getElementById('rater').value = 'r-1'")
    browser.run("document.querySelector('#start button').click()")
    browser.until("document.getElementById('item-title').textContent === 'Recording (3 of 6)'")
    for step in range(4, 7):
        answer_everything(browser, 3)
        browser.until(f"document.getElementById('item-title').textContent.endsWith('({step} of 6)')")
    assert browser.run("document.querySelectorAll('audio').length") == 2  # a batch of clips
    answer_everything(browser, 3)
    browser.until("!document.getElementById('done').hidden")

    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "saved"))
    browser.run("document.getElementById('save').click()")
    end = time.monotonic() + 60
    while not (saved := list((tmp_path / "saved").glob("*.csv"))):
        assert time.monotonic() < end, "no file was saved"
        time.sleep(0.1)
    result = score_listening_test(key, saved)
    assert result.raters == 1
    assert {method: set(scores) for method, scores in result.scores.items()} == {
        "ours": {"quality", "intelligibility", "accuracy", "diversity"},
        "real": {"quality", "intelligibility", "diversity"},
    }
    assert result.scores["ours"]["quality"].mean + result.scores["real"]["quality"].mean == pytest.approx(6.5)
    assert result.scores["ours"]["accuracy"].mean == 0  # "none" is not 3
    assert result.scores["real"]["diversity"].mean == 5
    assert browser.errors == []
