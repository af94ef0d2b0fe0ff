"""Creation of a listening test: a folder with a page and anonymized clips, and a key that identifies the clips."""

import hashlib
import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sashimi_diffusion.data.audio import write_audio
from sashimi_diffusion.data.decoding import AudioFileError
from sashimi_diffusion.data.recordings import report_bad_files
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import files_written_beside, writing
from sashimi_diffusion.output_files import write_output_file
from sashimi_diffusion.paths import entries, is_folder, read_bytes, status
from sashimi_diffusion.terminal import printable
from sashimi_evaluation.clips import ClipFolder, read_clip
from sashimi_evaluation.html import encode_page, package_file, playable, template_environment
from sashimi_evaluation.listening_test.ratings import CLIP_RATINGS, DIVERSITY, RATINGS

LONGEST_SECONDS = 600.0
"""Maximum duration of a clip in seconds."""
_LISTED = 3  # number of clips that an error lists


@dataclass(frozen=True)
class _Clip:
    """A chosen file and the method it belongs to."""

    method: str
    file: Path


def write_listening_test(
    out: Path | str,
    methods: Mapping[str, Sequence[Path]],
    seed: int = 0,
    clips_per_method: int = 10,
    ratings: Sequence[str] = RATINGS,
    labels: Mapping[Path, int] | None = None,
) -> Path:
    """Write a listening test that runs in a browser from a folder, without a server or a network.

    ``out`` contains ``index.html`` and ``audio/``: randomly chosen clips of all methods in random order, as 16-bit mono
    wav files with neutral names. Levels are not changed, and sample rates only if browsers do not play them. For the
    question ``diversity``, the clips of each method are also presented together as a batch. The source of the page
    therefore shows which clips belong together, but not to which method. Only the key contains the methods. It is
    written next to the folder and must not be given to raters.

    Args:
        out: folder to create. If it exists, it must be empty, or contain the same test: it is then written again, which
            completes a test whose creation was interrupted.
        methods: files by method. A method is a system that generates clips; real recordings are also a method.
        seed: seed of the selection and the order of the clips.
        clips_per_method: number of clips of each method.
        ratings: the questions, a subset of ``RATINGS``.
        labels: requested digit, from 0 to 9, by file; files without a known digit may be missing.

    Returns:
        The path of the key, ``<out>.key.json``.

    Raises:
        UserError: there are no methods, too few files, or an unknown rating; a file cannot be used; or the folder is
            not empty or cannot be written.
    """
    labels = labels or {}
    _check_arguments(methods, clips_per_method, ratings, labels)
    out = Path(os.path.abspath(out))  # the name of "." is that of its folder
    key = out.parent / f"{out.name}.key.json"
    _check_place(out, key)
    clips = _choose_clips(methods, seed, clips_per_method)
    ratings = [rating for rating in RATINGS if rating in ratings]
    batches = _batches(methods, seed) if DIVERSITY in ratings else {}
    _check_clips(clips)
    with (
        writing(f"the listening test {printable(out)}"),
        files_written_beside(Path(os.path.realpath(out))) as folder,
    ):
        (folder / "audio").mkdir()
        for name, clip in clips.items():
            write_audio(folder / "audio" / f"{name}.wav", *playable(*_audio(clip.file)))
        test = _test_id(folder, clips, seed, ratings)
        (folder / "index.html").write_bytes(_page(test, ratings, clips, batches))
        key_clips = _key_clips(clips, labels)
        content = {"test": test, "seed": seed, "ratings": ratings, "clips": key_clips, "batches": batches}
        # The key comes before the folder: a test without its key is lost.
        _write_key(key, json.dumps(content, indent=1).encode())
    return key


def usable_files(clips: ClipFolder) -> list[Path]:
    """Return the files of a folder that a listening test can use, with a warning about the others.

    Raises:
        UserError: no file can be used.
    """
    bad = {}
    for file in clips.files:
        try:
            _audio(file)
        except AudioFileError as error:
            bad[file] = error.reason
    report_bad_files(bad, len(clips), clips.root, skip_bad_files=True)
    return [file for file in clips.files if file not in bad]


def _check_place(out: Path, key: Path) -> None:
    """Refuse a place with other files; a test that has a key is compared when the content of its key is known."""
    found, place = status(out), printable(out)
    if not out.name or (found is not None and not is_folder(out)):
        raise UserError(f"{place} cannot be the folder of a listening test: choose the name of a new folder")
    if status(key) is None and entries(out):
        raise UserError(f"{place} already exists and has other files: choose another name or an empty folder")


def _write_key(key: Path, content: bytes) -> None:
    if status(key) is not None and read_bytes(key, "the key of a listening test") != content:
        raise UserError(
            f"{printable(key)} already exists and belongs to another test: choose another name, or remove it if nobody "
            "has rated that test yet"
        )
    write_output_file(key, content)


def _check_clips(clips: Mapping[str, _Clip]) -> None:
    """Decode all clips, so that bad ones are found before anything is written."""
    problems = []
    for clip in clips.values():
        try:
            _audio(clip.file)
        except AudioFileError as error:
            problems.append(str(error))
    if problems:
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise UserError(f"{'; '.join(problems[:_LISTED])}{more}: repair or remove these clips")


def _audio(file: Path) -> tuple[np.ndarray, int]:
    """Return a whole clip, float32 (length,), and its sample rate in Hz."""
    samples, sample_rate, _ = read_clip(file, LONGEST_SECONDS + 1)
    if len(samples) > LONGEST_SECONDS * sample_rate:
        raise AudioFileError(file, f"longer than {LONGEST_SECONDS:g} seconds")
    return samples, sample_rate


def _check_arguments(
    methods: Mapping[str, Sequence[Path]], clips_per_method: int, ratings: Sequence[str], labels: Mapping[Path, int]
) -> None:
    if not methods:
        raise UserError("a listening test needs at least one method, got none")
    if clips_per_method < 1:
        raise UserError(f"clips_per_method must be at least 1, got {clips_per_method}")
    unknown = next((rating for rating in ratings if rating not in RATINGS), None)
    if unknown is not None or not ratings:
        raise UserError(f"ratings must be one or more of {', '.join(RATINGS)}, got {unknown or 'none'}")
    wrong = next((file for file, label in labels.items() if label not in range(10)), None)
    if wrong is not None:
        raise UserError(f"labels must be digits from 0 to 9, got {labels[wrong]!r} for {printable(wrong)}")
    for method, files in methods.items():
        if len(set(files)) < clips_per_method:
            raise UserError(
                f"{method!r} has {len(set(files))} clips, too few for {clips_per_method} per method: "
                "give it more files, or reduce the number of clips"
            )


def _choose_clips(methods: Mapping[str, Sequence[Path]], seed: int, count: int) -> dict[str, _Clip]:
    """Return the selected clips by neutral name. The selection does not depend on the order of the files."""
    generator = random.Random(seed)
    chosen = [
        _Clip(method, file)
        for method in sorted(methods)
        for file in generator.sample(sorted(set(methods[method])), count)
    ]
    generator.shuffle(chosen)
    return {f"clip-{number:03}": clip for number, clip in enumerate(chosen, 1)}


def _batches(methods: Mapping[str, Sequence[Path]], seed: int) -> dict[str, str]:
    """Return the method of each batch by the neutral name of the batch, in random order."""
    shuffled = random.Random(f"batches {seed}").sample(sorted(methods), len(methods))
    return {f"batch-{number}": method for number, method in enumerate(shuffled, 1)}


def _test_id(out: Path, clips: Mapping[str, _Clip], seed: int, ratings: Sequence[str]) -> str:
    """Return an id that depends on the audio, the seed and the questions."""
    digest = hashlib.sha256(json.dumps([seed, ratings]).encode())
    for name in clips:
        digest.update((out / "audio" / f"{name}.wav").read_bytes())
    return digest.hexdigest()[:12]


def _page(test: str, ratings: Sequence[str], clips: Mapping[str, _Clip], batches: Mapping[str, str]) -> bytes:
    content = {
        "test": test,
        "ratings": ratings,
        "clips": list(clips) if any(rating in CLIP_RATINGS for rating in ratings) else [],
        "batches": {
            batch: [name for name, clip in clips.items() if clip.method == method] for batch, method in batches.items()
        },
    }
    style, script = package_file(__package__, "test.css"), package_file(__package__, "test.js")
    template = template_environment(__package__).get_template("index.html")
    return encode_page(template.render(test=content, style=style, script=script))


def _key_clips(clips: Mapping[str, _Clip], labels: Mapping[Path, int]) -> dict[str, dict[str, object]]:
    return {
        name: {
            "method": clip.method,
            "file": str(clip.file),
            "label": int(labels[clip.file]) if clip.file in labels else None,
        }
        for name, clip in clips.items()
    }
