"""Tests of the page of ``sashimi-demo`` in a real browser."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sashimi_diffusion.commands.demo import listen
from sashimi_diffusion.demo.catalog import Catalog
from sashimi_diffusion.demo.handlers import Handlers
from sashimi_diffusion.demo.jobs import Jobs
from sashimi_diffusion.demo.live import LiveSounds
from tests.browser import Browser, needs_chromium

pytestmark = [needs_chromium, pytest.mark.slow]

STATUS = (
    "[...document.querySelectorAll('.status')].filter(e => e.checkVisibility()).map(e => e.textContent.trim()).join()"
)
PLAYERS = "[...document.querySelectorAll('figure.clip audio')].filter(e => e.checkVisibility())"
BUTTON = "[...document.querySelectorAll('button.lg')].find(e => e.checkVisibility() && e.textContent.trim() === '{}')"
TAB = "[...document.querySelectorAll('[role=tab]')].find(e => e.checkVisibility() && e.textContent.trim() === '{}')"
FIELD = "[...document.querySelectorAll('[aria-label=\"{}\"]')].find(e => e.checkVisibility())"
NAMED_ROLES = {"button", "combobox", "slider", "spinbutton", "tab", "textbox", "Audio"}


@pytest.fixture(scope="module")
def address(autoregressive: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a server of the page."""
    pytest.importorskip("gradio", reason="the page needs gradio: pip install gradio")
    uploads = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        import uvicorn

        from sashimi_diffusion.demo.page import build_page
        from sashimi_diffusion.demo.server import application

        catalog, sounds = Catalog([autoregressive], torch.device("cpu")), LiveSounds()
        app = application(build_page(Handlers(catalog, Jobs(), sounds)), sounds)
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
        with listen("127.0.0.1", 0) as listening:
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(
        tmp_path_factory.mktemp("browser"), "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"
    )
    yield browser
    browser.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Browser:
    """Open the page anew; at the end there were no errors on its console, and no requests to other hosts."""
    browser.open("about:blank")  # ends the page of the test before, which reports what it had not finished
    browser.errors.clear()
    browser.requests.clear()
    browser.call("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
    browser.open(address)
    browser.until(f"!!{BUTTON.format('Draw')}")
    yield browser
    assert [error for error in browser.errors if "Method not implemented." not in error] == []  # gradio's own warning
    own = (address, "data:", f"blob:{address}")
    assert [url for url in browser.requests if not url.startswith(own)] == []
    assert any(url.startswith(address) for url in browser.requests)


def click(page: Browser, element: str) -> None:
    page.until(f"!!{element}")
    page.run(f"{element}.click()")


def fill(page: Browser, label: str, value: object) -> None:
    """Enter a value into a field as a user does."""
    field = FIELD.format(label)
    page.until(f"!!{field}")
    page.run(f"{field}.focus(), {field}.select()")
    page.call("Input.insertText", text=str(value))
    page.run(f"{field}.blur()")


def screenshot(page: Browser, name: str) -> None:
    """Store a picture of the page if a folder for them is named by the environment."""
    if folder := os.environ.get("SASHIMI_SCREENSHOTS"):
        page.save_screenshot(Path(folder) / f"{name}.png")


def test_a_drawn_digit_plays_and_shows_how_to_repeat_it(page: Browser):
    fill(page, "number input for Steps", 3)
    click(page, BUTTON.format("Draw"))
    page.until(f"/^Done/.test({STATUS})")
    player = f"{PLAYERS}[0]"
    assert page.run(f"{PLAYERS}.length") == 1
    assert page.run(f"{player}.src.startsWith('data:audio/wav;base64,')")
    page.run(f"{player}.play()")
    page.until(f"{player}.currentTime > 0.02")
    assert page.run("[...document.querySelectorAll('.clip img')].every(i => i.naturalWidth > 50 && i.alt.length > 50)")
    assert "--steps 3" in page.run("document.querySelector('.command').textContent")
    screenshot(page, "draw")


def test_sampling_is_canceled_between_steps(page: Browser):
    fill(page, "number input for Steps", 200)
    fill(page, "number input for Number of clips", 8)
    click(page, BUTTON.format("Draw"))
    page.until(f"/step [1-9]/i.test({STATUS})")
    click(page, BUTTON.format("Cancel"))
    page.until(f"{STATUS} === 'Canceled.'", 20)
    time.sleep(1)
    assert page.run(STATUS) == "Canceled."  # no step of the canceled work follows
    assert page.run(f"{PLAYERS}.length") == 0
    fill(page, "number input for Steps", 2)
    fill(page, "number input for Number of clips", 1)
    click(page, BUTTON.format("Draw"))
    page.until(f"/^Done/.test({STATUS})", 30)


def test_an_error_is_a_line_in_the_page(page: Browser):
    page.run(f"{FIELD.format('Seed')}.value = ''")
    fill(page, "Seed", -5)
    click(page, BUTTON.format("Draw"))
    page.until(f"/^the seed is -5/.test({STATUS})")
    assert page.run("document.querySelector('.status.error').parentElement.closest('[role=status]') !== null")
    click(page, BUTTON.format("New seed"))
    page.until(f"Number({FIELD.format('Seed')}.value) > 0")


def test_two_settings_are_compared(page: Browser):
    click(page, TAB.format("Compare"))
    fill(page, "number input for Steps A", 4)
    fill(page, "number input for Steps B", 2)
    click(page, BUTTON.format("Compare"))
    page.until(f"/^Done: second/.test({STATUS})")
    assert page.run(f"{PLAYERS}.length") == 2
    commands = page.run("[...document.querySelectorAll('.command')].map(e => e.textContent)")
    seeds = [command.split("--seed ")[1].split()[0] for command in commands]
    assert seeds[0] == seeds[1]
    assert ["--steps 4" in commands[0], "--steps 2" in commands[1]] == [True, True]
    screenshot(page, "compare")


def upload(page: Browser, path: Path) -> None:
    document = page.call("DOM.getDocument")["root"]["nodeId"]
    inputs = page.call("DOM.querySelectorAll", nodeId=document, selector="input[type=file]")["nodeIds"]
    page.call("DOM.setFileInputFiles", nodeId=inputs[-1], files=[str(path)])


def test_a_recording_is_continued_and_played_while_it_is_generated(page: Browser, tmp_path: Path):
    soundfile.write(tmp_path / "start.wav", 0.5 * np.sin(np.arange(22050) / 9), 44100)
    click(page, TAB.format("Continue"))
    page.until("!!document.querySelector('input[type=file]')")
    upload(page, tmp_path / "start.wav")
    page.until("!!document.querySelector('[aria-label=\"Clear\"]')")
    fill(page, "number input for Seconds to add", 1)
    click(page, BUTTON.format("Continue"))
    page.until("document.querySelector('.live audio')?.currentTime > 0.05")
    page.until(f"/^Done: 1.50/.test({STATUS})")
    page.until(f"{PLAYERS}[1].readyState > 0")
    assert page.run(f"{PLAYERS}[1].duration") == pytest.approx(1.5, abs=0.01)
    assert page.run("document.querySelector('.live audio').duration") == pytest.approx(1.5, abs=0.01)
    assert "--prefix start.wav --seconds 1.5" in page.run("document.querySelector('.command').textContent")
    screenshot(page, "continue")


def test_a_recording_of_the_microphone_is_continued(page: Browser):
    part = "[...document.querySelectorAll('button')].find(e => e.checkVisibility() && e.textContent.trim() === '{}')"
    click(page, TAB.format("Continue"))
    click(page, "document.querySelector('[aria-label=\"Record audio\"]')")
    click(page, part.format("Record"))
    page.until(f"!!{part.format('Stop')}")
    time.sleep(1)
    click(page, part.format("Stop"))
    page.until("!!document.querySelector('[aria-label=\"Download\"]')")
    click(page, BUTTON.format("Continue"))
    page.until(f"/^Done/.test({STATUS})")
    assert "--prefix audio.wav" in page.run("document.querySelector('.command').textContent")


def test_a_generated_sound_is_canceled(page: Browser):
    click(page, TAB.format("Continue"))
    fill(page, "number input for Seconds to add", 60)
    click(page, BUTTON.format("Continue"))
    page.until(f"/of 60.0 seconds/.test({STATUS})")
    click(page, BUTTON.format("Cancel"))
    page.until(f"{STATUS} === 'Canceled.'", 20)
    assert page.run("document.querySelectorAll('.command').length") == 0


def test_controls_have_names_and_the_page_a_language(page: Browser):
    assert page.run("document.documentElement.lang") == "en"
    page.call("Accessibility.enable")
    for tab in ("Draw", "Continue", "Compare"):
        click(page, TAB.format(tab))
        time.sleep(0.5)
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        named = [(node["role"]["value"], node.get("name", {}).get("value")) for node in nodes if "role" in node]
        assert [(role, name) for role, name in named if role in NAMED_ROLES and not name] == []
        assert {"combobox", "slider", "button", "tab"} <= {role for role, _ in named}


def test_the_empty_page_says_what_to_press_within_the_window(page: Browser):
    page.call("Emulation.setDeviceMetricsOverride", width=1300, height=1000, deviceScaleFactor=1, mobile=False)
    click(page, TAB.format("Draw"))
    assert page.run("[...document.querySelectorAll('.hint')].some(e => e.textContent.startsWith('Press Draw'))")
    page.until(f"{BUTTON.format('Draw')}.getBoundingClientRect().bottom < 1000")
    screenshot(page, "draw-empty")


def test_the_keyboard_reaches_the_controls_in_their_order(page: Browser):
    page.run(f"{TAB.format('Draw')}.focus()")
    reached = []
    for _ in range(25):
        page.press("Tab")
        reached.append(page.run("document.activeElement.ariaLabel || document.activeElement.textContent.trim()"))
    order = ["Pipeline", "Label", "Voice", "range slider for Steps", "Seed", "New seed", "Draw", "Cancel"]
    assert [reached.index(name) for name in order] == sorted(reached.index(name) for name in order)


@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_is_not_wider_than_the_window(page: Browser, width: int):
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
    for tab in ("Continue", "Compare", "Draw"):
        click(page, TAB.format(tab))
        time.sleep(0.3)
        assert page.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
        screenshot(page, f"{tab}-{width}".lower())


def test_a_file_that_is_no_audio_gives_a_message(page: Browser, tmp_path: Path):
    (tmp_path / "wrong.wav").write_text("no audio")
    click(page, TAB.format("Continue"))
    page.until("!!document.querySelector('input[type=file]')")
    upload(page, tmp_path / "wrong.wav")
    page.until("!!document.querySelector('[aria-label=\"Clear\"]')")
    click(page, BUTTON.format("Continue"))
    page.until(f"/^cannot use wrong.wav: not audio/.test({STATUS})")


CONTRASTS = r"""
(() => {
  const light = c => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const rgb = text => text.match(/[\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const background = e => {
    for (; e; e = e.parentElement) {
      const color = rgb(getComputedStyle(e).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const e of document.querySelectorAll('body *')) {
    const text = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join('');
    if (!text || !e.checkVisibility({opacityProperty: true, visibilityProperty: true}) || !e.offsetWidth) continue;
    const [a, b] = [luminance(rgb(getComputedStyle(e).color)), luminance(background(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(text.slice(0, 40) + ' ' + ((a + 0.05) / (b + 0.05)).toFixed(2));
  }
  return low;
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(page: Browser, scheme: str):
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.call("Page.reload")
    time.sleep(1)
    fill(page, "number input for Steps", 2)
    click(page, BUTTON.format("Draw"))
    page.until(f"/^Done/.test({STATUS})")
    screenshot(page, scheme)
    assert page.run(CONTRASTS) == []
    fill(page, "Seed", -5)
    click(page, BUTTON.format("Draw"))
    page.until("!!document.querySelector('.status.error')")
    assert page.run(CONTRASTS) == []
    for tab in ("Continue", "Compare"):
        click(page, TAB.format(tab))
        time.sleep(0.5)
        assert page.run(CONTRASTS) == []
    page.call("Emulation.setEmulatedMedia", features=[])
