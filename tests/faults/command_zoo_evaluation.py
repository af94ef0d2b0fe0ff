"""Wrong calls of sashimi-evaluate and its listening tests, and right ones beside them."""

from collections.abc import Iterator
from dataclasses import replace

from tests.faults.command_zoo import (
    ESCAPE,
    LONG,
    NO_DEVICE,
    NO_FILE,
    NO_FOLDER,
    NO_OUTPUT_FILE,
    NO_OUTPUT_FOLDER,
    NOT_WHOLE,
    UNDECODABLE,
    Row,
    every,
    right,
    wrong,
    wrong_values,
)

EVALUATE = "sashimi-evaluate"
NAMES = "--pattern={label}_{speaker}_{index}"
REAL = f"--reference digits {NAMES} --classifier classifier"
LINE = f"samples {REAL}"
MAKE = "listening-test make real=digits ours=samples"
TOO_MANY = str(10**12)


def evaluation_rows() -> Iterator[Row]:
    """Yield all rows of sashimi-evaluate."""
    yield from right_calls()
    yield from usage()
    yield from every(2, folders())
    yield from every(2, selections())
    yield from numbers()
    yield from networks()
    yield from outputs()
    yield from listening_tests()
    yield from every(2, listening_scores())


def right_calls() -> Iterator[Row]:
    yield right(EVALUATE, LINE, "evaluation.json", ["evaluation.json"])
    yield right(EVALUATE, f"{LINE} --hold-out index=1 --json new.json", "new.json", ["new.json"])
    yield right(EVALUATE, f"one=samples two=digits {REAL} --resamples 2", "two", ["evaluation.json"])
    yield right(EVALUATE, f"{LINE} --html new.html", "new.html", ["evaluation.json", "new.html"])
    yield right(EVALUATE, f"'{ESCAPE}=samples' {REAL}", "\\x1b[2Jred", ["evaluation.json"])
    yield right(EVALUATE, f"'{UNDECODABLE}=samples' {REAL}", "caf\\udce9", ["evaluation.json"])
    yield right(EVALUATE, f"{LINE} --json {UNDECODABLE}.json", "caf\\udce9.json", [f"{UNDECODABLE}.json"])
    yield right(EVALUATE, f"{LINE} --json null", "null")
    yield right(EVALUATE, f"{LINE} --html null", "null", ["evaluation.json"])
    yield right(EVALUATE, f"{LINE} --json null --html null", "null")
    yield replaced(right(EVALUATE, f"{LINE} --json link.json", "link.json"), "target.json")
    yield replaced(right(EVALUATE, f"{LINE} --html notes.txt", "notes.txt", ["evaluation.json"]), "notes.txt")
    yield right(EVALUATE, LINE, writes=["evaluation.json"], reader=False)
    yield right(EVALUATE, f"{LINE} --html new.html", writes=["evaluation.json", "new.html"], reader=False)
    for encoding in ("latin-1", "ascii", "cp1252"):
        yield right(EVALUATE, LINE, "FID", ["evaluation.json"], encoding=encoding)
    yield right(EVALUATE, f"'\u4e2d=samples' {REAL}", "\\u4e2d", ["evaluation.json"], encoding="ascii")
    yield right(EVALUATE, f"{MAKE} --clips 2 --out new", "new", ["new", "new.key.json"])
    yield right(
        EVALUATE, f"{MAKE} --clips 2 --out empty", "empty", ["empty/audio", "empty/index.html", "empty.key.json"]
    )
    yield right(EVALUATE, f"{MAKE} --clips 2 --out new", writes=["new", "new.key.json"], reader=False)
    yield right(
        EVALUATE, f"{MAKE} --clips 2 --out '\u2193'", "\\u2193", ["\u2193", "\u2193.key.json"], encoding="ascii"
    )


def usage() -> Iterator[Row]:
    for line, says in {
        "": "--reference",
        "samples": "--reference",
        f"{LINE} --nothing": "--nothing",
        f"{LINE} --json": "--json",
        f"{LINE} --protocol x": "--protocol",
        f"{LINE} --protocol ''": "--protocol",
        f"{LINE} --likelihood-window 0.4": "--likelihood-window",
        f"{LINE} --likelihood-window x y": "--likelihood-window",
        f"{LINE} '--{ESCAPE}'": "\\x1b[2Jred",
        f"{LINE} --re 5": "--re",
    }.items():
        yield wrong(EVALUATE, line, says)


def folders() -> Iterator[Row]:
    for folder, says in (NO_FOLDER | {"full": "full", "tones": "tones"}).items():
        yield wrong(EVALUATE, [folder, *REAL.split()], says)
        yield from wrong_values(EVALUATE, f"samples {NAMES} --classifier classifier", "--reference", {folder: says})
    for folder, says in {
        "nowhere": "nowhere",
        "": "",
        "full": "full",
        "loop": "loop",
        "fifo": "fifo",
        LONG: "nnn",
    }.items():
        yield from wrong_values(EVALUATE, LINE, "--held-out", {folder: says})
    for line, says in {
        f"name= {REAL}": "name",
        f"samples samples {REAL}": "samples",
        f"a=samples a=digits {REAL}": "a",
        f"bad {REAL}": "0_a_0.wav",
        f"'{ESCAPE}=nowhere' {REAL}": "nowhere",
        f"samples --reference bad {NAMES} --classifier classifier": "0_a_0.wav",
        f"samples --reference bad {NAMES} --classifier classifier --skip-bad-files": "bad",
        f"{LINE} --held-out digits": "held-out",
        f"{LINE} --held-out samples --hold-out index=0": "--hold-out",
    }.items():
        yield wrong(EVALUATE, line, says)


def selections() -> Iterator[Row]:
    for option in ("--pattern", "--sample-pattern"):
        for value, says in {
            "": "",
            "x": "x",
            "{": "{",
            "}": "}",
            "{}": "{}",
            "{label": "{label",
            "{label}{label}": "{label}{label}",
            "{folder}": "folder",
            "{a b}": "{a b}",
            "{0}": "{0}",
            "{label!r}-{index:>5}": "",
            f"{{label}}_{ESCAPE}": "\\x1b[2Jred",
            f"{{label}}{UNDECODABLE}": "caf\\udce9",
            "".join(f"{{f{number}}}" for number in range(200)): "",
            "{label}_{speaker}_{index}" + "{x}" * 30: "",
            "/".join(f"{{f{number}}}" for number in range(50)): "",
        }.items():
            other = "" if option == "--pattern" else NAMES
            line = f"samples --reference digits --classifier classifier {other}"
            yield from wrong_values(EVALUATE, line, option, {value: says})
    for option in ("--where", "--hold-out"):
        for value, says in {
            "": option,
            "x": option,
            "=a": option,
            "speaker=": option,
            "speaker=nobody": "nobody",
            "nothing=a": "nothing",
            "speaker=a,": "speaker",
            f"speaker={ESCAPE}": "\\x1b[2Jred",
            f"speaker={UNDECODABLE}": "caf\\udce9",
        }.items():
            yield from wrong_values(EVALUATE, LINE, option, {value: says})
    yield wrong(EVALUATE, f"{LINE} --hold-out label=0,1,2,3,4,5,6,7,8,9")
    yield wrong(EVALUATE, f"{LINE} --where speaker=a --where speaker=a --hold-out speaker=b")


def numbers() -> Iterator[Row]:
    yield from wrong_values(EVALUATE, LINE, "--seed", [*NOT_WHOLE, "-1"])
    yield from wrong_values(EVALUATE, LINE, "--resamples", [*NOT_WHOLE, "1", "0", "-5", TOO_MANY, "9" * 400])
    for window in ("0.4 0.05", "nan 0", "0 nan", "-0.1 0", "0 -0.1", "0.6 0.6", "inf 0", "1 1"):
        yield wrong(EVALUATE, f"{LINE} --likelihood-window {window}")
    yield from wrong_values(EVALUATE, LINE, "--device", NO_DEVICE, "device")


def networks() -> Iterator[Row]:
    line = f"samples --reference digits {NAMES}"
    for value, says in (NO_FOLDER | {"full": "full", "tones": "tones", "tones/model": "tones/model", "..": ""}).items():
        yield from wrong_values(EVALUATE, line, "--classifier", {value: says})
    yield wrong(EVALUATE, f"{line} --classifier digits-smal", "digits-smal")
    yield wrong(EVALUATE, f"{line} --classifier speech-embedding", "speech-embedding")
    for value in (
        "",
        "x",
        ":f",
        "m:",
        "no_such_module:f",
        "json:nothing",
        "os:getcwd",
        "os:system",
        "sys:exit",
        "os:abort",
    ):
        yield from wrong_values(EVALUATE, LINE, "--features", [value])
    for value in (
        "json:dumps",
        "json:JSONDecoder",
        "json:decoder",
        "this is:no name",
        "..x:f",
        "os.path:join",
        "builtins:input",
    ):
        yield from wrong_values(EVALUATE, LINE, "--features", [value])
    yield from wrong_values(
        EVALUATE, LINE, "--features", {f"{ESCAPE}:f": "\\x1b[2Jred", f"{UNDECODABLE}:f": "caf\\udce9"}
    )
    yield from wrong_values(EVALUATE, LINE, "--cache-dir", NO_OUTPUT_FOLDER)


def outputs() -> Iterator[Row]:
    for option in ("--json", "--html"):
        yield from wrong_values(EVALUATE, LINE, option, NO_OUTPUT_FILE)
        for name in ("samples/0_a_0.wav", "digits/1_b_1.wav", "classifier/config.json"):
            yield from wrong_values(EVALUATE, LINE, option, {name: name})
    for pair in (
        "same same",
        "link.json target.json",
        "same ./same",
        "same full/../same",
        "evaluation.json evaluation.json",
    ):
        first, second = pair.split()
        yield wrong(EVALUATE, f"{LINE} --json {first} --html {second}", second.rpartition("/")[2])
    yield wrong(EVALUATE, f"{LINE} --html evaluation.json", "evaluation.json")


def listening_tests() -> Iterator[Row]:
    for line, says in {
        "listening-test": "make",
        "listening-test x": "x",
        "listening-test make": "--out",
        "listening-test make samples": "--out",
        f"{MAKE} --out new --nothing": "--nothing",
        f"{MAKE} --clips 1 --out .": "",
        f"{MAKE} --clips 1 --out ..": "",
        f"{MAKE} --clips 1 --out /": "",
        f"{MAKE} --clips 1 --out full": "full",
        f"{MAKE} --clips 1 --out digits": "digits",
        f"{MAKE} --clips 1 --out test": "test",
        "listening-test make a=digits a=samples --out new --clips 1": "a",
        "listening-test make bad --out new --clips 1": "wav",
    }.items():
        yield wrong(EVALUATE, line, says)
    yield from wrong_values(EVALUATE, f"{MAKE} --clips 1", "--out", NO_OUTPUT_FOLDER)
    yield from wrong_values(EVALUATE, f"{MAKE} --out new", "--clips", [*NOT_WHOLE])
    yield from wrong_values(EVALUATE, f"{MAKE} --out new", "--clips", ["0", "-1", "5", TOO_MANY, "9" * 400], "clips")
    yield from wrong_values(EVALUATE, f"{MAKE} --out new --clips 1", "--seed", [*NOT_WHOLE])
    for folder, says in (NO_FOLDER | {"full": "full"}).items():
        yield wrong(EVALUATE, ["listening-test", "make", folder, "--out=new", "--clips=1"], says)
    for pattern in ("", "x", "{", "{label", "{label}{label}", "{folder}"):
        yield from wrong_values(EVALUATE, f"{MAKE} --out new --clips 1", "--pattern", {pattern: pattern})


def listening_scores() -> Iterator[Row]:
    score = "listening-test score"
    yield wrong(EVALUATE, score, "key")
    yield wrong(EVALUATE, f"{score} test.key.json", "CSV")
    useless = {
        "notes.txt": "notes.txt",
        "nothing.txt": "nothing.txt",
        "binary.bin": "binary.bin",
        "prefix.wav": "prefix.wav",
    }
    for name, says in (NO_FILE | useless).items():
        yield wrong(EVALUATE, [*score.split(), name, "answers.csv"], says)
        yield wrong(EVALUATE, [*score.split(), "test.key.json", name], says)
    for name in ("list.json", "deep.json", "target.json", "tones/model_index.json"):
        yield wrong(EVALUATE, f"{score} {name} answers.csv", name)
    yield wrong(EVALUATE, f"{score} test.key.json answers.csv", "")


def replaced(row: Row, path: str) -> Row:
    """Return a row that may also replace a file."""
    return replace(row, replaces=(path,))
