"""Wrong calls of the three recipes and of ``sashimi-train``, and right ones beside them."""

from collections.abc import Iterator
from dataclasses import replace

from tests.faults.command_zoo import (
    BEYOND,
    ESCAPE,
    LONG,
    NO_FILE,
    NO_FOLDER,
    NO_OUTPUT_FOLDER,
    UNDECODABLE,
    Row,
    every,
    right,
    wrong,
    wrong_values,
)

DIFFUSION = "train_diffwave_sashimi.py"
AUTOREGRESSIVE = "train_autoregressive_sashimi.py"
CLASSIFIER = "train_digit_classifier.py"
CONFIGS = {DIFFUSION: "diffusion", AUTOREGRESSIVE: "autoregressive", CLASSIFIER: "classifier"}
LINES = {recipe: f"--config {name}.yaml" for recipe, name in CONFIGS.items()}
RESUME = "--config diffusion.yaml output_dir=run"
DEEP = "[" * 3000

# Keys that every recipe has -> values that are wrong.
COMMON = {
    "seed": ("-1", "1.5", "x", "[1]", "true", str(2**63), "9" * 400, ""),
    "output_dir": ("''",),
    "optimizer.name": ("x", "''", "1", "null"),
    "optimizer.lr": ("0", "-1", "x", ".nan", ".inf", "''", "1e400", "[1]"),
    "optimizer.ssm_lr": ("0", ".nan", ".inf"),
    "optimizer.weight_decay": (".nan", ".inf", "-1", "x"),
    "optimizer.betas": ("[0.9]", "[0.9,0.9,0.9]", "[2,3]", "[.nan,0.9]", "0.9", "[a,b]", "[]", "null"),
    "optimizer.momentum": ("1", "-0.1", ".nan"),
    "optimizer.warmup_steps": ("-1", "1.5", "x"),
    "optimizer.decay": ("x", "null"),
    "optimizer.gradient_clip": ("0", "-1", ".nan", ".inf"),
    "training.steps": ("0", "-1", "1.5", "1e3", "x", "9" * 400, BEYOND, "[1]", "null", "2026-01-01"),
    "training.max_minutes": ("0", "-1", ".nan", ".inf"),
    "training.batch_size": ("0", "-1", "x", "2.5"),
    "training.gradient_accumulation": ("0", "-1"),
    "training.mixed_precision": ("fp16", "x", "1"),
    "training.cpu_threads": ("0", "-1", "x"),
    "training.ema_decay": ("1", "-0.1", ".nan"),
    "training.log_every": ("0", "-1"),
    "training.checkpoint_every": ("0", "x"),
    "training.keep_checkpoints": ("0", "-1"),
    "training.trackers": ("x", "[nothing]", "{a: 1}"),
    "tracking.project": ("''",),
    "tracking.run": ("''",),
    "tracking.nothing": ("1",),
    "card.license": ("CC BY", "''", "[mit]"),
    "card.datasets": ("x", "[a b]", "[a/b/c]", "[1]"),
    "card.language": ("en", "[English]"),
    "card.title": ("''",),
    "model.name": ("x", "null", "1"),
}

DIFFUSION_ONLY = {
    "model.n_layers": ("0", "-1", "x", "1.5", "10000000"),
    "model.residual_channels": ("0", "-1", "1000000000"),
    "model.dilation_cycle": ("0", "-1"),
    "model.embedding_dim": ("0", "-1"),
    "model.waveform_std": ("0", "-1", ".nan", ".inf", "x"),
    "model.sample_rate": ("8000",),
    "model.nothing": ("1",),
    "data.sample_rate": ("0", "-1", "1.5", "x", str(10**12)),
    "data.length": ("0", "-1", "1.5", str(10**12)),
    "data.splits": ("[1]", "[0.5,0.5,0.5]", "[1,1,-1]", "[.nan,0,0]", "x"),
    "data.pattern": ("''", "x", "'{'", "'{label'", "'{folder}'", "[a]", "1"),
    "data.holdout": ("x", "[1]", "{index: []}", "{nothing: [0]}", "{index: [77]}", "{index: [0, 1]}"),
    "data.where": ("x", "{nothing: [0]}", "{speaker: [nobody]}"),
    "data.normalize_rms": ("0", "-1", ".nan", ".inf"),
    "data.gain_db": ("-1", ".nan", ".inf"),
    "data.random_shift": ("-1", "x"),
    "data.speakers": ("nothing", "1"),
    "data.mel.n_fft": ("0", "-1"),
    "schedule.num_train_timesteps": ("0", "-1", str(10**12)),
    "schedule.beta_start": ("0", "-1", ".nan", "2"),
    "schedule.beta_end": ("0", "1", ".nan", "1e308"),
    "objective.min_snr_gamma": ("0", "-1", ".nan"),
    "objective.label_dropout": ("1", "-0.1", ".nan"),
    "sampling.guidance_scale": (".nan", ".inf", "x"),
    "sampling.scheduler": ("x", "1"),
    "sampling.steps": ("0", "-1", "x"),
    "sampling.num_samples": ("-1", "x"),
    "sampling.seed": ("x", str(2**64)),
}

AUTOREGRESSIVE_ONLY = {
    "model.d_model": ("0", "-1", "x"),
    "model.n_layers": ("-1", "10000000"),
    "model.pool": ("[0]", "[-4]", "x", "[]x"),
    "model.n_state": ("0", "-1", "1", "1000000000"),
    "model.quantization": ("x",),
    "data.normalize": ("x",),
    "data.carry_chunks": ("0", "-1", "7"),
    "sampling.seconds": ("0", "-1", ".nan", ".inf", "1e308"),
    "sampling.temperature": ("-1", ".nan", ".inf"),
    "sampling.top_p": ("0", "2", ".nan"),
    "sampling.engine": ("x", "''", "1"),
}

CLASSIFIER_ONLY = {
    "model.embedding": ("nowhere", "''", "1", "null"),
    "model.dropout": ("1", "-1", ".nan"),
    "data.sources": ("x", "[]", "{a: 1}"),
    "data.sources.tones.kind": ("x",),
    "data.sources.tones.splits": ("[1]",),
    "data.balance": ("-1", "2", ".nan"),
    "augmentation.speed": ("0.5", ".nan", ".inf"),
    "augmentation.noise_db": ("[1]", "[2,1]", "[.nan,1]"),
    "augmentation.gain_db": ("-1", ".inf"),
    "objective.label_smoothing": ("1", "-0.1", ".nan"),
}


def recipe_rows() -> Iterator[Row]:
    """Yield all rows of the recipes."""
    for recipe in CONFIGS:
        # The recipes share their command line: each has all rows in `make test-slow`.
        step = 1 if recipe == DIFFUSION else 4
        yield from right_calls(recipe)
        yield from every(step, usage(recipe))
        yield from every(step, config_files(recipe))
        yield from every(step, data_folders(recipe))
    yield from sub_commands()
    yield from data_kinds()
    yield from settings()
    yield from texts()
    yield from resumed_runs()


def right_calls(recipe: str) -> Iterator[Row]:
    line = LINES[recipe]
    yield right(recipe, line, "", ["new-run"])
    yield right(recipe, f"{line} 'output_dir=runs of {ESCAPE} #2'", "\\x1b[2Jred #2", [f"runs of {ESCAPE} #2"])
    yield right(recipe, f"{line} --skip-bad-files", writes=["new-run"], reader=False)
    yield right(recipe, f"{line} 'output_dir=\u2193 run'", "\\u2193", ["\u2193 run"], encoding="ascii")
    yield right(recipe, f"{line} training.steps=1", "", ["new-run"], encoding="cp1252")
    yield right(recipe, "--schema", "output_dir")
    yield right(recipe, "--schema", reader=False)


def usage(recipe: str) -> Iterator[Row]:
    line = LINES[recipe]
    for wrong_line, says in {
        "--nothing": "--nothing",
        "--config": "--config",
        f"{line} --resume-from": "--resume-from",
        f"{line} --resume=yes": "--resume",
        f"{line} '--{ESCAPE}'": "\\x1b[2Jred",
        f"{line} word": "word",
        f"{line} =1": "=1",
        f"{line} ''": "",
        f"{line} training.step=1": "training.steps",
        f"{line} nothing=1": "nothing",
        f"{line} training=1": "training",
        f"{line} training.steps.more=1": "training.steps",
        f"{line} .=1": "",
        f"{line} training.=1": "training",
        f"{line} '{ESCAPE}=1'": "\\x1b[2Jred",
        f"{line} {UNDECODABLE}=1": "caf\\udce9",
        f"{line} --push-to-hub": "--push-to-hub",
        f"{line} --push-to-hub ''": "is no name of a repository",
        f"{line} --push-to-hub 'a b'": "is no name of a repository",
        f"{line} --push-to-hub '{ESCAPE}'": "\\x1b[2Jred",
        f"{line} --push-to-hub {UNDECODABLE}": "caf\\udce9",
        f"{line} --push-to-hub a/b": "needs the hub, but HF_HUB_OFFLINE is set",
    }.items():
        yield wrong(recipe, wrong_line, says)


def config_files(recipe: str) -> Iterator[Row]:
    useless = {"binary.bin": "binary.bin", "prefix.wav": "prefix.wav"}
    useless |= {
        f"{name}.yaml": f"{name}.yaml"
        for name in ("alias", "twice", "list", "text", "deep", "broken", "latin", "tagged")
    }
    for name, says in (NO_FILE | useless).items():
        # A config that names a key twice says which line; the others are named.
        yield from wrong_values(recipe, "", "--config", {name: "seed" if name == "twice.yaml" else says})
    other = next(name for name in CONFIGS.values() if name != CONFIGS[recipe])
    yield wrong(recipe, f"--config {other}.yaml", "")


def data_folders(recipe: str) -> Iterator[Row]:
    key = "data.sources.tones.path" if recipe == CLASSIFIER else "data.path"
    for path, says in (NO_FOLDER | {"full": "full", "bad": "0_a_0.wav", "tones": "tones"}).items():
        if path not in ("", "null"):  # texts of YAML that are no path
            yield wrong(recipe, [*LINES[recipe].split(), f"{key}={path}"], says)
    for value in ("null", "''"):
        yield wrong(recipe, f'{LINES[recipe]} "{key}={value}"', "")
    yield wrong(recipe, f"{LINES[recipe]} {key}=bad --skip-bad-files", "")
    key = key.replace("path", "kind")
    yield wrong(recipe, f"{LINES[recipe]} {key}=speech_commands", "")
    for path, says in NO_OUTPUT_FOLDER.items():
        if path not in ("", "null"):
            yield wrong(recipe, [*LINES[recipe].split(), f"output_dir={path}"], says)
            yield wrong(recipe, [*LINES[recipe].split(), f"{key.replace('kind', 'cache_dir')}={path}"], says)


def sub_commands() -> Iterator[Row]:
    """``sashimi-train`` has the command line of the recipes after the name of a kind of run."""
    yield right("sashimi-train", "--help", "autoregressive")
    yield wrong(
        "sashimi-train", "", "the first argument must be one of diffusion, autoregressive, distill, init, classifier"
    )
    for first, says in {
        "difusion": "did you mean 'diffusion'?",
        "--config": "--config",
        "--list": "--list",
        "data.path=digits": "data.path=digits",
        ESCAPE: "\\x1b[2Jred",
        UNDECODABLE: "caf\\udce9",
        LONG: "nnn",
    }.items():
        yield wrong("sashimi-train", [first, "output_dir=run"], says)
    yield wrong("sashimi_diffusion.commands.train", "classifier --list", "`sashimi-train classifier`")
    yield right("sashimi_diffusion.commands.train", "autoregressive --list", "digits-ar-small")
    for recipe, kind in CONFIGS.items():
        yield right("sashimi-train", f"{kind} {LINES[recipe]}", f"config: {kind}.yaml", ["new-run"])
        yield right("sashimi-train", f"{kind} --list", "in the folder")
        yield from every(1 if recipe == DIFFUSION else 4, sub_command_usage(recipe, kind))


def sub_command_usage(recipe: str, kind: str) -> Iterator[Row]:
    line = LINES[recipe]
    for wrong_line, says in {
        "--list --resume": "--resume",
        "--list --config digits-small": "--config",
        "--list --schema": "--schema",
        "--list seed=1": "key.sub=value",
        "--config digits-smal": "did you mean 'digits-",
        "--config recipes/digits-small.yaml": "recipes/digits-small.yaml does not exist",
        "--config full": "full is a folder",
        f"--config {LONG}": LONG[:250],
        f"{line} --nothing": f"sashimi-train {kind} --help",
        f"{line} training.step=1": "training.steps",
        "--resume output_dir=nowhere": "there is no run to resume",
    }.items():
        yield wrong("sashimi-train", f"{kind} {wrong_line}", says)


def data_kinds() -> Iterator[Row]:
    """Data sets of other kinds that cannot be used."""
    tar = {
        "nowhere.tar": "nowhere.tar does not exist",
        "x-{0..3}.tar": "4 of 4 tar files",
        "digits": "no tar file in digits",
        "prefix.wav": "prefix.wav is no tar file",
        "x-{a}.tar": "{a} is no range",
        "x-{3..1}.tar": "{3..1} must count up",
        f"'{ESCAPE}.tar'": "\\x1b[2Jred.tar",
        f"{UNDECODABLE}.tar": "caf\\udce9.tar",
    }
    yield from wrong_values(DIFFUSION, f"{LINES[DIFFUSION]} data.kind=webdataset", "data.path", tar)
    table = {
        "./nowhere": "nowhere does not exist",
        "notes.txt": "notes.txt is not a folder",
        "empty": "cannot read empty as a Hugging Face data set",
    }
    yield from wrong_values(DIFFUSION, f"{LINES[DIFFUSION]} data.kind=hf_dataset", "data.path", table, quick=0)
    yield wrong(DIFFUSION, f"{LINES[DIFFUSION]} data.label_column=word", "data.label_column")
    yield wrong(DIFFUSION, f"{LINES[DIFFUSION]} model.in_channels=2", "1 channel instead of 2")
    yield wrong(AUTOREGRESSIVE, f"{LINES[AUTOREGRESSIVE]} model.in_channels=2", "model.in_channels")


def settings() -> Iterator[Row]:
    """Wrong values of single keys."""
    for recipe, table in {DIFFUSION: COMMON, AUTOREGRESSIVE: {}, CLASSIFIER: {}}.items():
        own = {DIFFUSION: DIFFUSION_ONLY, AUTOREGRESSIVE: AUTOREGRESSIVE_ONLY, CLASSIFIER: CLASSIFIER_ONLY}[recipe]
        for key, values in (table | own).items():
            says = "" if key in ("model.sample_rate", "data.holdout", "data.where") else key.rpartition(".")[2]
            for position, value in enumerate(values):
                row = wrong(recipe, [*LINES[recipe].split(), f"{key}={value}"], says)
                # The table of the settings tries the values themselves; here they pass through the whole command.
                yield replace(row, slow=position > 0)


def texts() -> Iterator[Row]:
    """Overrides that are no value of any kind."""
    for value in (
        "!!int x",
        "!!float x",
        "!!python/name:os.system",
        "2026-13-45",
        "2026-01-01",
        "&a [*a]",
        "*a",
        "{",
        "'",
        DEEP,
        "? a",
        "%x",
        "@a",
        "`a`",
        BEYOND,
        "\t",
        "!!binary x",
        "!!timestamp x",
        "1:99:99",
    ):
        for recipe in (DIFFUSION, AUTOREGRESSIVE):
            yield wrong(recipe, [*LINES[recipe].split(), f"training.batch_size={value}"], "training.batch_size")
    for key in ("model.name", "optimizer.name", "data.pattern"):
        for value in (f"'{ESCAPE}'", UNDECODABLE, f"'{{label}}{ESCAPE}'"):
            shown = "caf\\udce9" if value == UNDECODABLE else "\\x1b[2Jred"
            yield wrong(DIFFUSION, [*LINES[DIFFUSION].split(), f"{key}={value}"], shown)


def resumed_runs() -> Iterator[Row]:
    going_on = right(DIFFUSION, f"--resume {RESUME} training.steps=3", "")
    yield replace(going_on, writes=("run/checkpoints/step-000003",), replaces=("run",))
    yield wrong(DIFFUSION, RESUME, "--resume")
    yield wrong(DIFFUSION, f"--resume-from '' {RESUME}", "")
    for name in (
        "step-000009",
        "checkpoints/step-9",
        "nowhere",
        "metrics.jsonl",
        "/",
        "..",
        UNDECODABLE,
        "loop",
        "step-000001/",
    ):
        says = "caf\\udce9" if name == UNDECODABLE else "" if name in ("/", "..", "step-000001/") else name
        if name != "step-000001/":
            yield wrong(DIFFUSION, f"--resume-from={name} {RESUME}", says)
    yield wrong(DIFFUSION, ["--resume-from", ESCAPE, *RESUME.split()], "\\x1b[2Jred")
    for key, value in {
        "seed": "5",
        "model.n_layers": "3",
        "data.length": "64",
        "data.holdout": "{speaker: [a]}",
        "schedule.num_train_timesteps": "7",
        "objective.label_dropout": "0.5",
        "training.batch_size": "3",
    }.items():
        yield wrong(
            DIFFUSION,
            [f"{RESUME}".split()[0], *RESUME.split()[1:], "--resume", f"{key}={value}"],
            key.rpartition(".")[2],
        )
    yield wrong(DIFFUSION, f"--resume {RESUME} data.path=samples", "")
    yield wrong(DIFFUSION, f"--resume {RESUME} optimizer.name=sgd", "optimizer")
    yield wrong(DIFFUSION, f"--resume {RESUME} optimizer.name=muon", "optimizer")
    yield wrong(AUTOREGRESSIVE, "--resume output_dir=run", "")
    yield wrong(CLASSIFIER, "--resume output_dir=run", "")
    yield wrong(DIFFUSION, "--resume --config diffusion.yaml output_dir=notes.txt", "notes.txt")
    yield wrong(
        DIFFUSION,
        "--resume --config diffusion.yaml output_dir=run/checkpoints/step-000001/manifest.json",
        "manifest.json",
    )
