"""Wrong calls of sashimi-sample, and right ones beside them."""

from collections.abc import Iterator

from tests.faults.command_zoo import (
    BEYOND,
    ESCAPE,
    MISSING,
    NO_DEVICE,
    NO_FILE,
    NO_FOLDER,
    NO_OUTPUT_FILE,
    NO_OUTPUT_FOLDER,
    NOT_WHOLE,
    UNDECODABLE,
    Row,
    right,
    wrong,
    wrong_values,
)

SAMPLE = "sashimi-sample"
TONES = "--pipeline tones --num-samples 1"
WORDS = "--pipeline words --num-samples 1"
PIANO = "--pipeline piano --num-samples 1 --engine eager"

TOO_MANY = str(10**15)


def sampling_rows() -> Iterator[Row]:
    """Yield all rows of sashimi-sample."""
    yield from right_calls()
    yield from usage()
    yield from numbers()
    yield from pipelines()
    yield from places()
    yield from labels()
    yield from diffusion_options()
    yield from autoregressive_options()
    yield from streams()


def right_calls() -> Iterator[Row]:
    yield right(SAMPLE, f"{TONES} --out new", "1 clip,", ["new"])
    yield right(SAMPLE, f"{TONES} --out new --batch-size {10**15} --seed {2**63 - 1}", "1 clip,", ["new"])
    yield right(SAMPLE, f"{TONES} --out new/below --steps 2 --scheduler ddim", "1 clip,", ["new"])
    yield right(SAMPLE, f"{WORDS} --label one --speaker bob --guidance-scale 2 --out new", "1 clip,", ["new"])
    yield right(SAMPLE, f"{PIANO} --out new --temperature 0 --top-k 3 --top-p 0.5", "1 clip,", ["new"])
    yield right(SAMPLE, f"{PIANO} --out new --prefix prefix.wav --sort-by-likelihood", "1 clip,", ["new"])
    yield right(SAMPLE, "--pipeline piano --engine eager --stream new.wav", "s of audio", ["new.wav"])
    yield right(
        SAMPLE, f"--pipeline piano --engine eager --stream {UNDECODABLE}.wav", "caf\\udce9.wav", [f"{UNDECODABLE}.wav"]
    )
    yield right(SAMPLE, f"{TONES} --out '{ESCAPE}'", "\\x1b[2Jred", [ESCAPE])
    yield right(SAMPLE, f"{TONES} --out '{UNDECODABLE}'", "caf\\udce9", [UNDECODABLE])
    yield right(SAMPLE, f"{PIANO} --out '{UNDECODABLE}'", "caf\\udce9", [UNDECODABLE])
    for line in (TONES, PIANO):
        yield right(SAMPLE, f"{line} --out new", writes=["new"], reader=False)
        for encoding in ("latin-1", "ascii", "cp1252"):
            yield right(SAMPLE, f"{line} --out new", "1 clip,", ["new"], encoding=encoding)
        yield right(SAMPLE, f"{line} --out '\u2193 \u4e2d'", "\\u2193", ["\u2193 \u4e2d"], encoding="ascii")


def usage() -> Iterator[Row]:
    for line, says in {
        "--nothing": "--nothing",
        "word": "word",
        f"'{ESCAPE}'": "\\x1b[2Jred",
        UNDECODABLE: "caf\\udce9",
        "--seed": "--seed",
        "--num-samples": "--num-samples",
        "--s 1": "--s",
        "--dtype float64": "--dtype",
        "--dtype ''": "--dtype",
        "--engine x": "--engine",
        "--weights int4": "--weights",
        "--likelihood-window 0.1": "--likelihood-window",
        "--sort-by-likelihood=yes": "--sort-by-likelihood",
    }.items():
        yield wrong(SAMPLE, line, says)


def numbers() -> Iterator[Row]:
    """Options that both kinds of pipelines have."""
    for option in ("--num-samples", "--batch-size", "--seed"):
        yield from wrong_values(SAMPLE, "--pipeline tones", option, [*NOT_WHOLE, "-1"])
    for option in ("--num-samples", "--batch-size"):
        yield from wrong_values(SAMPLE, "--pipeline piano", option, ["0", "-5"])
    yield from wrong_values(SAMPLE, TONES, "--seed", [str(2**63), "9" * 400])
    yield from wrong_values(SAMPLE, "--pipeline piano --engine eager", "--num-samples", [TOO_MANY, "9" * 400], "")
    yield from wrong_values(SAMPLE, "--pipeline tones", "--num-samples", [TOO_MANY, "9" * 400], "")
    for line in (TONES, PIANO):
        yield from wrong_values(SAMPLE, line, "--seconds", ["", "x", "1,5"])
        yield from wrong_values(
            SAMPLE, line, "--seconds", ["0", "-1", "nan", "inf", "-inf", "1e-9", "1e400"], "seconds"
        )
        yield from wrong_values(SAMPLE, line, "--seconds", ["1e12", "1e308"], "")
        yield from wrong_values(SAMPLE, line, "--device", NO_DEVICE, "device")


def pipelines() -> Iterator[Row]:
    yield from wrong_values(SAMPLE, "--num-samples 1", "--pipeline", NO_FOLDER)
    for value, says in {
        "owner/name": "owner/name",
        "a/b/c": "a/b/c",
        "/": "/",
        "..": "",
        "~": "~",
        "digits": "digits",
        "classifier": "classifier",
        "tones/model": "tones/model",
        "tones/model_index.json": "model_index.json",
        "run": "run",
        "vocoder": "vocoder",
        f"owner/{ESCAPE}": "\\x1b[2Jred",
        "sashimi-digit": "sashimi-digit",
    }.items():
        yield from wrong_values(SAMPLE, "--num-samples 1", "--pipeline", {value: says})
    yield wrong(SAMPLE, "--pipeline nan-piano --num-samples 1 --engine eager", "nan-piano")
    yield wrong(SAMPLE, "--pipeline nan-piano --stream new.wav --engine eager", "nan-piano")
    for option in (
        "--prefix=prefix.wav",
        "--temperature=1",
        "--top-p=1",
        "--top-k=1",
        "--engine=eager",
        "--weights=int8",
    ):
        yield wrong(SAMPLE, f"{TONES} {option}", option.partition("=")[0])
    yield wrong(SAMPLE, f"{TONES} --stream new.wav", "--stream")
    yield wrong(SAMPLE, f"{TONES} --sort-by-likelihood", "--sort-by-likelihood")
    yield wrong(SAMPLE, f"{TONES} --likelihood-window 0 0", "--likelihood-window")
    for option in ("--steps=1", "--scheduler=ddim", "--label=0", "--speaker=0", "--guidance-scale=1"):
        yield wrong(SAMPLE, f"{PIANO} {option}", option.partition("=")[0])
    yield wrong(SAMPLE, f"{PIANO} --no-cuda-graph", "--no-cuda-graph")


def places() -> Iterator[Row]:
    for line in (TONES, PIANO):
        yield from wrong_values(SAMPLE, line, "--out", NO_OUTPUT_FOLDER)
        # The folder is not made for a call that is refused.
        yield wrong(SAMPLE, f"{line} --out new --seconds 1e9")
        yield wrong(SAMPLE, f"{line} --out new --seed -1", "--seed")
    yield wrong(SAMPLE, f"{TONES} --out new --steps 0")
    yield wrong(SAMPLE, f"{TONES} --out new --guidance-scale 2")
    yield wrong(SAMPLE, f"{WORDS} --out new --guidance-scale nan")
    yield wrong(SAMPLE, f"{PIANO} --out new --temperature -1", "temperature")
    yield wrong(SAMPLE, f"{PIANO} --out new --top-p 2", "top_p")
    yield wrong(SAMPLE, f"{PIANO} --out new --prefix long.wav")


def labels() -> Iterator[Row]:
    for option in ("--label", "--speaker"):
        values = [
            "",
            ",",
            "three",
            "2",
            "-1",
            "0,7",
            "zero,",
            "1.0",
            "\u00b2",
            "\u0663",
            "ZERO",
            "0" * 5000,
            "9" * 5000,
        ]
        yield from wrong_values(SAMPLE, WORDS, option, values, "")
        yield from wrong_values(SAMPLE, WORDS, option, {ESCAPE: "\\x1b[2Jred", UNDECODABLE: "caf\\udce9"})
        yield wrong(SAMPLE, f"{TONES} {option} 0", option)


def diffusion_options() -> Iterator[Row]:
    yield from wrong_values(SAMPLE, TONES, "--steps", NOT_WHOLE)
    yield from wrong_values(SAMPLE, TONES, "--steps", ["0", "-1", "1000000", "9" * 400], "")
    for scheduler in ("diffwave-fast", "ddim", "dpmsolver++", "unipc", "heun"):
        yield from wrong_values(SAMPLE, f"{TONES} --scheduler {scheduler}", "--steps", ["0", "-3", "1000000"], "")
    schedulers = {"x": "x", "": "", "DDIM": "DDIM", "ddim2": "ddim2", ESCAPE: "\\x1b[2Jred"}
    yield from wrong_values(SAMPLE, TONES, "--scheduler", schedulers)
    yield from wrong_values(SAMPLE, WORDS, "--guidance-scale", ["", "x", "1,5"])
    yield from wrong_values(SAMPLE, WORDS, "--guidance-scale", ["nan", "inf", "-inf", "1e308", "-1e308", "1e400"], "")


def autoregressive_options() -> Iterator[Row]:
    yield from wrong_values(SAMPLE, PIANO, "--temperature", ["", "x", "1,5"])
    yield from wrong_values(SAMPLE, PIANO, "--temperature", ["-1", "nan", "inf", "-inf", "1e400"], "temperature")
    yield from wrong_values(SAMPLE, PIANO, "--top-p", ["", "x", "1,5"])
    yield from wrong_values(SAMPLE, PIANO, "--top-p", ["0", "-0.1", "1.1", "nan", "inf", "1e308"], "top_p")
    yield from wrong_values(SAMPLE, PIANO, "--top-k", NOT_WHOLE)
    yield from wrong_values(SAMPLE, PIANO, "--top-k", ["0", "-1"], "top_k")
    for engine in ("triton", "cuda-graph"):
        yield wrong(SAMPLE, f"--pipeline piano --num-samples 1 --engine {engine}", engine)
    windows = ["x 0", "0 x", "-0.1 0", "0 -0.1", "0.6 0.6", "1 0", "0 1", "nan 0", "0 nan", "inf 0", "0.9 0.05"]
    for window in windows:
        yield wrong(SAMPLE, f"{PIANO} --likelihood-window {window}")
    yield from wrong_values(SAMPLE, PIANO, "--prefix", NO_FILE)
    for name in (
        "notes.txt",
        "nothing.txt",
        "binary.bin",
        "silent.wav",
        "nan.wav",
        "cut.wav",
        "long.wav",
        "tones/model_index.json",
    ):
        yield from wrong_values(SAMPLE, PIANO, "--prefix", {name: "prefix" if name == "long.wav" else name})


def streams() -> Iterator[Row]:
    line = "--pipeline piano --engine eager"
    yield from wrong_values(SAMPLE, line, "--stream", NO_OUTPUT_FILE)
    yield from wrong_values(SAMPLE, line, "--stream", {"nowhere/new.wav": "nowhere"})
    yield from wrong_values(
        SAMPLE, line, "--stream", {path: shown for path, shown in MISSING.items() if path == "dangling"}
    )
    yield wrong(SAMPLE, f"{line} --stream prefix.wav --prefix prefix.wav", "prefix.wav")
    yield wrong(SAMPLE, f"{line} --stream piano/model/config.json", "config.json")
    for option in (
        "--num-samples 2",
        "--num-samples 0",
        "--sort-by-likelihood",
        "--likelihood-window 0 0",
        "--batch-size 0",
    ):
        yield wrong(SAMPLE, f"{line} --stream new.wav {option}", option.split()[0])
        yield wrong(SAMPLE, f"{line} --play {option}", option.split()[0])
    yield wrong(SAMPLE, f"{line} --stream new.wav --weights bfloat16", "numba")
    for option in (
        "--seconds 1e12",
        "--seconds nan",
        "--seed -1",
        f"--seed {BEYOND}",
        "--temperature nan",
        "--top-p 0",
    ):
        yield wrong(SAMPLE, f"{line} --stream new.wav {option}")
    yield right("sashimi-sample", f"{line} --stream null", "null")
    yield right("sashimi-sample", f"{line} --stream new.wav", "new.wav", ["new.wav"], encoding="ascii")
    yield right("sashimi-sample", f"{line} --stream new.wav", writes=["new.wav"], reader=False)
