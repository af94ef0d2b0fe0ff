"""The page: its tabs and controls, and the handlers behind its buttons. It needs gradio."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from sashimi_diffusion.demo.catalog import Catalog, Entry
from sashimi_diffusion.demo.handlers import Handlers
from sashimi_diffusion.demo.sampling import (
    LONGEST_RECORDING,
    MOST_CLIPS,
    MOST_SEEDS,
    QUICK_SAMPLER,
    Continuation,
    Drawing,
    label_text,
)
from sashimi_diffusion.pipelines.labels import KnownLabels

CSS = (Path(__file__).with_name("page.css")).read_text(encoding="utf-8")

_ALL, _OWN = "", ""
_STEPS, _FEW_STEPS, _MOST_STEPS = 20, 6, 200
_MOST_GUIDANCE, _MOST_SECONDS, _MOST_TEMPERATURE = 6.0, 60.0, 2.0
_LEAST_TOP_P = 0.05
_WAITING = 8  # events in the queue; further ones are refused
_ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "sampling", "concurrency_limit": 1, "show_progress": "hidden"}
_NEW_SEED = f"() => Math.floor(Math.random() * {MOST_SEEDS})"
_IS_STATUS = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite');"
_NO_AUTOREGRESSIVE = """There is no autoregressive pipeline here, and only those continue recordings. Train one
(`sashimi-train autoregressive`), and start the page with its folder: `sashimi-demo --pipeline runs/piano/pipeline`."""


def theme() -> gr.Theme:
    """Return a theme with fonts of the system and colors of sufficient contrast."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", **fonts).set(  # type: ignore[arg-type]
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        block_label_text_color="*neutral_700",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        slider_color="*primary_700",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
    )


def build_page(handlers: Handlers) -> gr.Blocks:
    """Return the page."""
    catalog = handlers.catalog
    with gr.Blocks(title="sashimi-demo", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown("# sashimi-demo\nRaw audio from state-space models, computed on this computer.")
        with gr.Tabs():
            with gr.Tab("Draw"):
                _draw_tab(handlers)
            with gr.Tab("Continue"):
                if catalog.names(autoregressive=True):
                    _continue_tab(handlers)
                else:
                    gr.Markdown(_NO_AUTOREGRESSIVE)
            with gr.Tab("Compare"):
                _compare_tab(handlers)

        def leave(request: gr.Request) -> None:
            handlers.stop(str(request.session_hash))

        page.unload(leave)
    return page.queue(max_size=_WAITING, api_open=False)


def _draw_tab(handlers: Handlers) -> None:
    names = handlers.catalog.names(autoregressive=False)
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            pipeline = _pipeline_control(names, names[0])
            with gr.Row():
                label, voice = _label_controls([handlers.catalog[names[0]]])
            count = gr.Slider(1, MOST_CLIPS, value=1, step=1, label="Number of clips")
            sampling = _sampling_controls(handlers.catalog, pipeline, _STEPS)
            seed = _seed_controls()
            start, cancel = _buttons("Draw")
        with gr.Column(scale=2, min_width=300):
            status, shown = _status(), _results("Press Draw. The clips appear here, to hear and to see.")

    def labels_of(name: str) -> list[Any]:
        return _label_updates([handlers.catalog[name]])

    def run(name, sampler, steps, guidance, label, voice, count, seed, request: gr.Request):  # type: ignore[no-untyped-def]
        drawing = _drawing(handlers.catalog[name], sampler, steps, guidance, label, voice, seed, count)
        yield from _parts(handlers.draw(str(request.session_hash), drawing))

    pipeline.change(labels_of, pipeline, [label, voice], **_QUIET)
    inputs = [pipeline, *sampling, label, voice, count, seed]
    _connect(handlers, start, cancel, run, inputs, status, [shown])


def _compare_tab(handlers: Handlers) -> None:
    catalog = handlers.catalog
    names = catalog.names(autoregressive=False)
    gr.Markdown("The same label, voice and seed, with two pipelines or two settings.")
    other = names[min(1, len(names) - 1)]
    with gr.Row():
        with gr.Column(min_width=300):
            first = _pipeline_control(names, names[0], " A")
            sampling = _sampling_controls(catalog, first, _STEPS, " A")
        with gr.Column(min_width=300):
            second = _pipeline_control(names, other, " B")
            sampling_too = _sampling_controls(catalog, second, _STEPS if other != names[0] else _FEW_STEPS, " B")
    with gr.Row():
        label, voice = _label_controls([catalog[names[0]], catalog[other]])
    seed = _seed_controls()
    start, cancel = _buttons("Compare")
    status = _status()
    with gr.Row():
        with gr.Column(min_width=300):
            shown = _results("Press Compare. The clip of A appears here.")
        with gr.Column(min_width=300):
            shown_too = _results("The clip of B appears here.")

    def labels_of(name: str, other: str) -> list[Any]:
        return _label_updates([catalog[name], catalog[other]])

    def run(  # type: ignore[no-untyped-def]
        name, sampler, steps, guidance, name_too, sampler_too, steps_too, guidance_too, label, voice, seed,
        request: gr.Request,
    ):  # fmt: skip
        drawings = (
            _drawing(catalog[name], sampler, steps, guidance, label, voice, seed),
            _drawing(catalog[name_too], sampler_too, steps_too, guidance_too, label, voice, seed),
        )
        yield from _parts(handlers.compare(str(request.session_hash), drawings))

    for pipeline in (first, second):
        pipeline.change(labels_of, [first, second], [label, voice], **_QUIET)
    inputs = [first, *sampling, second, *sampling_too, label, voice, seed]
    _connect(handlers, start, cancel, run, inputs, status, [shown, shown_too])


def _continue_tab(handlers: Handlers) -> None:
    catalog = handlers.catalog
    names = catalog.names(autoregressive=True)
    own_temperature, own_top_p = _drawing_of(catalog[names[0]])
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            pipeline = _pipeline_control(names, names[0])
            recording = gr.Audio(
                sources=["upload", "microphone"],
                type="filepath",
                label=f"Recording (optional, up to {LONGEST_RECORDING:g} s)",
                buttons=["download"],
                editable=False,
                waveform_options=gr.WaveformOptions(show_recording_waveform=False),  # the player of the browser
            )
            seconds = gr.Slider(0.1, _MOST_SECONDS, value=2, step=0.1, label="Seconds to add")
            temperature = gr.Slider(minimum=0, step=0.01, label="Temperature", **own_temperature)
            top_p = gr.Slider(maximum=1, step=0.001, label="Top-p", **own_top_p)
            seed = _seed_controls()
            start, cancel = _buttons("Continue")
        with gr.Column(scale=2, min_width=300):
            status, live = _status(), gr.HTML(padding=False)
            shown = _results("Press Continue. The sound is played while it is generated, and appears here.")

    def fit(name: str) -> list[Any]:
        return [gr.update(**own) for own in _drawing_of(catalog[name])]

    def run(name, recording, seconds, temperature, top_p, seed, request: gr.Request):  # type: ignore[no-untyped-def]
        path = None if recording is None else Path(recording)
        continuation = Continuation(name, path, float(seconds), float(temperature), float(top_p), _seed(seed))
        yield from _parts(handlers.proceed(str(request.session_hash), continuation))

    pipeline.change(fit, pipeline, [temperature, top_p], **_QUIET)
    inputs = [pipeline, recording, seconds, temperature, top_p, seed]
    _connect(handlers, start, cancel, run, inputs, status, [live, shown])


def _drawing_of(entry: Entry) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the defaults of temperature and top-p of an autoregressive pipeline, and the ends that include them."""
    own = entry.pipe.sampling()
    return (
        {"maximum": max(_MOST_TEMPERATURE, own.temperature), "value": own.temperature},
        {"minimum": min(_LEAST_TOP_P, own.top_p), "value": own.top_p},
    )


def _pipeline_control(names: Sequence[str], name: str, suffix: str = "") -> gr.Dropdown:
    return gr.Dropdown(list(names), value=name, label=f"Pipeline{suffix}")


def _sampling_controls(catalog: Catalog, pipeline: gr.Dropdown, steps: int, suffix: str = "") -> list[Any]:
    """Create the choices of sampler, steps and guidance, which follow that of the pipeline.

    Args:
        catalog: the pipelines.
        pipeline: the choice of the pipeline.
        steps: number of steps at first.
        suffix: added to the labels of the controls.
    """
    entry = catalog[pipeline.value]
    sampler = gr.Dropdown(label=f"Sampler{suffix}", **_samplers_of(entry))
    with gr.Row():
        controls = [
            sampler,
            gr.Slider(label=f"Steps{suffix}", step=1, minimum=1, min_width=140, **_steps_of(entry, steps)),
            gr.Slider(label=f"Guidance{suffix}", step=0.1, minimum=0, min_width=140, **_guidance_of(entry)),
        ]

    def fit(name: str) -> list[Any]:
        chosen = catalog[name]
        return [gr.update(**own) for own in (_samplers_of(chosen), _steps_of(chosen, steps), _guidance_of(chosen))]

    pipeline.change(fit, pipeline, controls, **_QUIET)
    return controls


def _samplers_of(entry: Entry) -> dict[str, Any]:
    choices = [("as saved with the pipeline", _OWN), *((name, name) for name in entry.samplers)]
    return {"choices": choices, "value": QUICK_SAMPLER if QUICK_SAMPLER in entry.samplers else _OWN}


def _steps_of(entry: Entry, steps: int) -> dict[str, Any]:
    most = min(entry.most_steps, _MOST_STEPS)
    return {"maximum": most, "value": min(steps, most)}


def _guidance_of(entry: Entry) -> dict[str, Any]:
    own = entry.pipe.config.guidance_scale
    return {"maximum": max(_MOST_GUIDANCE, own), "value": own, "visible": entry.takes_guidance}


def _label_controls(entries: Sequence[Entry]) -> list[gr.Dropdown]:
    """Create the choices of a label and of a voice."""
    settings = _label_settings(entries)
    return [gr.Dropdown(label=title, **own) for title, own in zip(("Label", "Voice"), settings, strict=True)]


def _label_updates(entries: Sequence[Entry]) -> list[Any]:
    return [gr.update(**own) for own in _label_settings(entries)]


def _label_settings(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return choices, value and visibility of the label and of the voice for one or two pipelines."""
    settings = []
    for known in ([entry.classes for entry in entries], [entry.speakers for entry in entries]):
        texts = _common([_texts(labels) for labels in known if labels is not None])
        choices = [*((text, text) for text in texts), ("all in turn", _ALL)]
        settings.append({"choices": choices, "value": choices[0][1], "visible": any(known)})
    return settings


def _texts(labels: KnownLabels) -> list[str]:
    return [label_text(labels, index) for index in range(labels.count)]


def _common(lists: Sequence[list[str]]) -> list[str]:
    """Return the texts that all lists have, in the order of the first."""
    return [text for text in lists[0] if all(text in other for other in lists)] if lists else []


def _seed_controls() -> gr.Number:
    with gr.Row(elem_classes="seed"):
        seed = gr.Number(value=random.randrange(1000), precision=0, label="Seed", scale=2, min_width=120)
        new = gr.Button("New seed", scale=1, min_width=100)
    new.click(None, None, seed, js=_NEW_SEED)
    return seed


def _buttons(title: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button(title, variant="primary", min_width=120), gr.Button("Cancel", min_width=120)


def _results(hint: str) -> gr.HTML:
    """Create the place of results, which has a hint until there are any."""
    return gr.HTML(f'<p class="hint">{hint}</p>', padding=False)


def _status() -> gr.HTML:
    return gr.HTML(padding=False, js_on_load=_IS_STATUS)


_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def _connect(
    handlers: Handlers,
    start: gr.Button,
    cancel: gr.Button,
    run: Any,
    inputs: list[Any],
    status: gr.HTML,
    others: list[gr.HTML],
) -> None:
    """Let the buttons start and cancel a handler, one at a time for all who use the page."""
    event = start.click(run, inputs, [status, *others], **_ONE_AT_A_TIME, api_visibility="private")

    def stop(request: gr.Request) -> str:
        return handlers.stop(str(request.session_hash))

    cancel.click(stop, None, status, cancels=event, queue=False, **_QUIET)


def _drawing(
    entry: Entry,
    sampler: str,
    steps: float,
    guidance: float,
    label: str,
    voice: str,
    seed: float | None,
    count: float = 1,
) -> Drawing:
    """Return the drawing that the values of the controls describe; a pipeline gets no labels that it does not have."""
    return Drawing(
        pipeline=entry.name,
        label=label if entry.classes is not None and label != _ALL else None,
        voice=voice if entry.speakers is not None and voice != _ALL else None,
        sampler=None if sampler == _OWN else sampler,
        steps=int(steps),
        guidance=float(f"{guidance:.6g}") if entry.takes_guidance else None,
        seed=_seed(seed),
        count=int(count),
    )


def _seed(value: float | None) -> int | None:
    return None if value is None else int(value)


def _parts(results: Iterator[tuple[Any, ...]]) -> Iterator[list[Any]]:
    """Yield what a handler yields, for gradio: parts that are None stay as they are."""
    for parts in results:
        yield [gr.skip() if part is None else part for part in parts]
