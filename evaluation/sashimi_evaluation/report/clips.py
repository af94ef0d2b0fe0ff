"""The clips of a report: a table with a row for each class and a column for each method, and its filters."""

from collections.abc import Sequence

from sashimi_evaluation.report.data import Clip, Method, Neighbour, ReportData
from sashimi_evaluation.report.html import Markup, element, join
from sashimi_evaluation.report.media import audio_uri, spectrogram_uri

# Pixels of the pictures; the page shows them at about half that size, so that they are sharp on dense screens.
_SAMPLE, _NEIGHBOUR = (400, 168), (232, 96)


def filter_form(data: ReportData) -> Markup:
    """Controls that choose which clips are shown. Hidden until the script that obeys them runs."""
    classes = [element("option", name, value=str(index)) for index, name in enumerate(data.classes)]
    methods = [element("option", method.name, value=str(index)) for index, method in enumerate(data.methods)]
    return element(
        "form",
        element("label", "Class ", _select("class", "all classes", classes)),
        element("label", "Folder ", _select("method", "all folders", methods)),
        element("label", element("input", type="checkbox", id="wrong", autocomplete="off"), " only misclassified"),
        id="filters",
        hidden=True,
        aria_label="Filter the clips",
    )


def clip_table(data: ReportData) -> Markup:
    """All clips of all methods. A clip stands in the row of its label or, without one, of its predicted class."""
    heads = [
        element("th", method.name, scope="col", data_method=str(number)) for number, method in enumerate(data.methods)
    ]
    rows = [_row(data, index) for index in range(len(data.classes)) if _has_clips(data.methods, index)]
    return element(
        "table",
        element(
            "caption", "Clips by class and folder. Every player has its own volume; clips play as loud as they are."
        ),
        element("thead", element("tr", element("th", "Class", scope="col"), *heads)),
        element("tbody", *rows),
        class_="clips",
        id="clip-table",
    )


def _select(name: str, everything: str, options: Sequence[Markup]) -> Markup:
    # Browsers restore choices when a page is reloaded; the page would then show more than the control says.
    return element("select", element("option", everything, value=""), *options, id=name, autocomplete="off")


def _row(data: ReportData, index: int) -> Markup:
    cells = []
    for number, method in enumerate(data.methods):
        clips = [_clip(clip, method, data.classes) for clip in method.clips if _row_of(clip) == index]
        content = join(*clips) if clips else element("span", "none", class_="faint")
        cells.append(element("td", content, data_method=str(number), data_name=method.name))
    return element("tr", element("th", data.classes[index], scope="row"), *cells, data_class=str(index))


def _has_clips(methods: Sequence[Method], index: int) -> bool:
    return any(_row_of(clip) == index for method in methods for clip in method.clips)


def _row_of(clip: Clip) -> int:
    return clip.predicted if clip.label is None else clip.label


def _clip(clip: Clip, method: Method, classes: Sequence[str]) -> Markup:
    wrong = clip.label is not None and clip.label != clip.predicted
    sample = element(
        "figure",
        _picture(clip.waveform, clip.sample_rate, _SAMPLE, f"Spectrogram of {clip.title}"),
        _player(clip.waveform, clip.sample_rate, f"{method.name}: {clip.title}"),
        element("figcaption", *_caption(clip, classes, wrong)),
        class_="sample",
    )
    neighbour = _neighbour(clip.neighbour, f"{method.name}: {clip.title}") if clip.neighbour is not None else ""
    return element("div", sample, neighbour, data_wrong=wrong, class_="clip wrong" if wrong else "clip")


def _caption(clip: Clip, classes: Sequence[str], wrong: bool) -> list[Markup]:
    verdict = [element("b", classes[clip.predicted]), f" {clip.probability:.2f}"]
    if wrong and clip.label is not None:
        verdict += [element("span", f" ✗ not {classes[clip.label]}", class_="verdict")]
    lines = [element("span", "heard as ", *verdict, class_="line"), element("span", clip.title, class_="line title")]
    if clip.log_likelihood is not None:
        likelihood = f"{clip.log_likelihood:,.0f}".replace("-", "\N{MINUS SIGN}")
        lines.append(element("span", f"log-likelihood {likelihood}", class_="line faint"))
    return lines


def _neighbour(neighbour: Neighbour, sample: str) -> Markup:
    return element(
        "figure",
        _picture(
            neighbour.waveform, neighbour.sample_rate, _NEIGHBOUR, f"Spectrogram of the neighbour {neighbour.title}"
        ),
        _player(neighbour.waveform, neighbour.sample_rate, f"Training clip nearest to {sample}: {neighbour.title}"),
        element(
            "figcaption",
            element("span", f"nearest training clip, {neighbour.distance:.3g} away", class_="line"),
            element("span", neighbour.title, class_="line title"),
        ),
        class_="neighbour",
    )


def _picture(waveform: object, sample_rate: int, size: tuple[int, int], alternative: str) -> Markup:
    width, height = size
    uri = spectrogram_uri(waveform, sample_rate, width, height)
    return element("img", src=uri, alt=alternative, width=str(width), height=str(height))


def _player(waveform: object, sample_rate: int, label: str) -> Markup:
    # Nothing is decoded before it is played: hundreds of clips would take seconds when the page opens.
    return element("audio", controls=True, preload="none", src=audio_uri(waveform, sample_rate), aria_label=label)
