"""Wrong calls of sashimi-convert and sashimi-push, and right ones beside them."""

from collections.abc import Iterator

from tests.faults.command_zoo import (
    ESCAPE,
    NO_FILE,
    NO_FOLDER,
    NO_OUTPUT_FOLDER,
    NOT_A_NUMBER,
    NOT_WHOLE,
    UNDECODABLE,
    Row,
    right,
    wrong,
    wrong_values,
)

CONVERT, PUSH = "sashimi-convert", "sashimi-push"
WAVENET = "wavenet.pkl new --dilation-cycle 2"
PIANO = "piano.pkl new"
WHOLE = ("--sample-rate", "--length", "--timesteps", "--dilation-cycle")
REAL = ("--beta-start", "--beta-end")


def conversion_rows() -> Iterator[Row]:
    """Yield all rows of sashimi-convert and sashimi-push."""
    yield from right_calls()
    yield from usage()
    yield from files()
    yield from numbers()
    yield from other_kinds()
    yield from pushes()


def pushes() -> Iterator[Row]:
    """Wrong calls; there is no hub for right ones."""
    for path, says in (NO_FOLDER | {"full": "has no model", "empty": "has no model", "notes.txt": "notes.txt"}).items():
        yield wrong(PUSH, [path, "me/tones"], says)
    for name in ("", "a b", "a/b/c", "a--b", "-a", "x" * 100):
        yield wrong(PUSH, ["--", "tones", name], "is no name of a repository")
    yield wrong(PUSH, ["tones", ESCAPE], "\\x1b[2Jred")
    for line, says in {
        "": "folder",
        "tones": "NAME",
        "tones me/tones more": "more",
        "tones me/tones --public": "--public",
        "tones me/tones": "needs the hub, but HF_HUB_OFFLINE is set",
        "run tones --private": "needs the hub, but HF_HUB_OFFLINE is set",
    }.items():
        yield wrong(PUSH, line, says)


def right_calls() -> Iterator[Row]:
    yield right(CONVERT, WAVENET, "wrote new", ["new"])
    yield right(CONVERT, PIANO, "wrote new", ["new"])
    yield right(CONVERT, f"{PIANO} --quantization linear --length 100 --sample-rate 8000", "linear", ["new"])
    yield right(
        CONVERT,
        "wavenet.pkl empty --dilation-cycle 2",
        "wrote empty",
        ["empty/model", "empty/scheduler", "empty/model_index.json", "empty/pipeline.py"],
    )
    yield right(CONVERT, f"wavenet.pkl '{ESCAPE}' --dilation-cycle 2", "\\x1b[2Jred", [ESCAPE])
    yield right(CONVERT, f"wavenet.pkl {UNDECODABLE} --dilation-cycle 2", "caf\\udce9", [UNDECODABLE])
    yield right(CONVERT, WAVENET, writes=["new"], reader=False)
    for encoding in ("latin-1", "ascii", "cp1252"):
        yield right(CONVERT, WAVENET, "wrote new", ["new"], encoding=encoding)
    yield right(CONVERT, "wavenet.pkl '\u2193' --dilation-cycle 2", "\\u2193", ["\u2193"], encoding="ascii")


def usage() -> Iterator[Row]:
    for line, says in {
        "": "OFFICIAL.pkl",
        "wavenet.pkl": "OUT_DIR",
        f"{WAVENET} more": "more",
        f"{WAVENET} --nothing": "--nothing",
        f"{WAVENET} --length": "--length",
        f"{WAVENET} --quantization x": "--quantization",
        f"{WAVENET} --quantization ''": "--quantization",
        f"{WAVENET} --dt-transform x": "--dt-transform",
        f"{WAVENET} --stored-nodes=x": "--stored-nodes",
        f"{WAVENET} --{UNDECODABLE}": "caf\\udce9",
        f"{WAVENET} --beta 1": "--beta",
        "wavenet.pkl new": "--dilation-cycle",
    }.items():
        yield wrong(CONVERT, line, says)


def files() -> Iterator[Row]:
    for name, says in NO_FILE.items():
        yield wrong(CONVERT, [name, "new"], says)
    for name in (
        "cut.pkl",
        "lfs.pkl",
        "list.pkl",
        "nothing.pkl",
        "other.pkl",
        "audio.pkl",
        "text.pkl",
        "text.safetensors",
    ):
        yield wrong(CONVERT, f"{name} new", "")
    for name in (
        "notes.txt",
        "nothing.txt",
        "binary.bin",
        "prefix.wav",
        "tones/model/config.json",
        "run/metrics.jsonl",
    ):
        yield wrong(CONVERT, f"{name} new", name)
    yield wrong(CONVERT, "tones/model/diffusion_pytorch_model.safetensors new", "")
    yield wrong(CONVERT, "run/checkpoints/step-000002/optimizer.pt new", "")
    for name, says in (
        NO_OUTPUT_FOLDER | {"full": "full", ".": "", "..": "", "/": "/", "wavenet.pkl": "wavenet.pkl"}
    ).items():
        yield wrong(CONVERT, ["wavenet.pkl", name, "--dilation-cycle=2"], says)


def numbers() -> Iterator[Row]:
    for option in WHOLE:
        yield from wrong_values(CONVERT, "wavenet.pkl new", option, ["0", "-1", *NOT_WHOLE])
        if option != "--dilation-cycle":
            yield from wrong_values(CONVERT, WAVENET, option, [str(10**12), str(2**63), "9" * 400], "")
    for option in REAL:
        yield from wrong_values(CONVERT, WAVENET, option, [*NOT_A_NUMBER, "0", "-1"])
        yield from wrong_values(CONVERT, WAVENET, option, ["1", "2", "1e308"], "beta")
    for option in ("--sample-rate", "--length"):
        yield from wrong_values(CONVERT, PIANO, option, [str(10**12), str(2**63), "9" * 400], "")


def other_kinds() -> Iterator[Row]:
    for option in ("--quantization=linear", "--dt-transform=exp", "--stored-nodes"):
        yield wrong(CONVERT, f"{WAVENET} {option}", option.partition("=")[0])
    for option in ("--timesteps=5", "--beta-start=0.1", "--beta-end=0.1", "--dilation-cycle=2", "--step-on-residual"):
        yield wrong(CONVERT, f"{PIANO} {option}", option.partition("=")[0])
    for option in ("--no-step-on-residual", "--stored-nodes"):
        yield wrong(CONVERT, f"{PIANO} {option}", "step-on-residual" if "step" in option else option)
