"""Making a listening test: a folder with a page and clips under neutral names, and a key that says what they are."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import soundfile

from sashimi_diffusion.data.audio import read_audio, write_audio
from sashimi_diffusion.errors import UserError
from sashimi_evaluation.listening_test.ratings import CLIP_RATINGS, RATINGS
from sashimi_evaluation.report.html import Markup, element, packaged


def write_listening_test(
    out: Path | str,
    methods: Mapping[str, Sequence[Path]],
    seed: int = 0,
    clips_per_method: int = 10,
    ratings: Sequence[str] = RATINGS,
    labels: Mapping[Path, int] | None = None,
) -> Path:
    """Writes a listening test that runs in a browser from a folder, without a server or a network.

    ``out`` gets ``index.html`` and ``audio/``: the chosen clips of all methods, shuffled, as 16-bit mono wav files at
    their own rates and levels, under names that say nothing. For ``diversity``, the clips of one method are also
    presented together as a batch, again without a name: who reads the page's source can see which clips belong
    together, but not to which method. That is only in the key, which is written *beside* the folder and must not be
    given to raters.

    Args:
        out: the folder to make; it must not exist or must be empty.
        methods: files by the name of the system that made them (real recordings are a method too).
        seed: chooses and shuffles the clips.
        clips_per_method: how many clips of each method are rated.
        ratings: what is asked, some of ``RATINGS``.
        labels: digit from 0 to 9 that a file is meant to say, for the files where that is known.

    Returns:
        The path of the key, ``<out>.key.json``.

    Raises:
        UserError: no methods, too few files, an unknown rating, a file that cannot be used, or a folder that is in use
            or cannot be written.
    """
    _check_request(methods, clips_per_method, ratings, labels or {})
    out = Path(out)
    key = out.with_name(f"{out.name}.key.json")
    for path in (out, key):
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise UserError(
                f"{path} exists already: choose another name, or remove it if nobody has rated that test yet"
            )
    chosen = _choose(methods, seed, clips_per_method)
    sounds = {name: (read_audio(file), soundfile.info(file).samplerate) for name, (_, file) in chosen.items()}
    try:
        (out / "audio").mkdir(parents=True, exist_ok=True)
        for name, (waveform, rate) in sounds.items():
            write_audio(out / "audio" / f"{name}.wav", waveform, rate)
        content = _content(out, chosen, list(methods), seed, ratings)
        (out / "index.html").write_text(_page(content), encoding="utf-8")
        key.write_text(json.dumps(_key(content, chosen, list(methods), seed, labels or {}), indent=1), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the listening test {out}: {error.strerror}") from error
    return key


def _check_request(
    methods: Mapping[str, Sequence[Path]], clips_per_method: int, ratings: Sequence[str], labels: Mapping[Path, int]
) -> None:
    if not methods:
        raise UserError("a listening test needs at least one method, got none")
    if clips_per_method < 1:
        raise UserError(f"clips_per_method must be at least 1, got {clips_per_method}")
    unknown = next((rating for rating in ratings if rating not in RATINGS), None)
    if unknown is not None or not ratings:
        raise UserError(f"ratings must be some of {', '.join(RATINGS)}, got {unknown or 'none'}")
    wrong = next((file for file, label in labels.items() if label not in range(10)), None)
    if wrong is not None:
        raise UserError(f"labels must be digits from 0 to 9, got {labels[wrong]!r} for {wrong}")
    for method, files in methods.items():
        if len(set(files)) < clips_per_method:
            raise UserError(
                f"{method!r} has {len(set(files))} clips, too few for {clips_per_method} per method: "
                "give it more files, or ask for fewer"
            )


def _choose(methods: Mapping[str, Sequence[Path]], seed: int, count: int) -> dict[str, tuple[str, Path]]:
    """Method and file by neutral name; the same seed and files give the same choice in whatever order they came."""
    generator = random.Random(seed)
    chosen = [
        (method, file) for method in sorted(methods) for file in generator.sample(sorted(set(methods[method])), count)
    ]
    generator.shuffle(chosen)
    return {f"clip-{number:03}": clip for number, clip in enumerate(chosen, 1)}


def _content(
    out: Path, chosen: Mapping[str, tuple[str, Path]], methods: Sequence[str], seed: int, ratings: Sequence[str]
) -> dict[str, object]:
    """What the page knows: ids and what to ask. The id of the test depends on its clips and questions."""
    asked = [rating for rating in RATINGS if rating in ratings]
    rated = list(chosen) if any(rating in CLIP_RATINGS for rating in asked) else []
    digest = hashlib.sha256(json.dumps([seed, asked]).encode())
    for name in chosen:
        digest.update((out / "audio" / f"{name}.wav").read_bytes())
    batches = {}
    if "diversity" in asked:
        batches = {name: _clips_of(chosen, method) for name, method in _batch_methods(methods, seed).items()}
    return {"test": digest.hexdigest()[:12], "ratings": asked, "clips": rated, "batches": batches}


def _batch_methods(methods: Sequence[str], seed: int) -> dict[str, str]:
    shuffled = random.Random(f"batches {seed}").sample(sorted(methods), len(methods))
    return {f"batch-{number}": method for number, method in enumerate(shuffled, 1)}


def _clips_of(chosen: Mapping[str, tuple[str, Path]], method: str) -> list[str]:
    return [name for name, (owner, _) in chosen.items() if owner == method]


def _key(
    content: Mapping[str, object],
    chosen: Mapping[str, tuple[str, Path]],
    methods: Sequence[str],
    seed: int,
    labels: Mapping[Path, int],
) -> dict[str, object]:
    clips = {
        name: {"method": method, "file": str(file), "label": int(labels[file]) if file in labels else None}
        for name, (method, file) in chosen.items()
    }
    batches = _batch_methods(methods, seed) if content["batches"] else {}
    return {"test": content["test"], "seed": seed, "ratings": content["ratings"], "clips": clips, "batches": batches}


def _page(content: Mapping[str, object]) -> str:
    page = packaged(__package__, "index.html")
    # The data are ids and numbers of this module's own making, so nothing in them can end the script element.
    data = element("script", Markup(json.dumps(content)), type="application/json", id="test")
    for name, piece in {
        "{style}": packaged(__package__, "test.css"),
        "{data}": data,
        "{script}": packaged(__package__, "test.js"),
    }.items():
        page = page.replace(name, piece)
    return page
