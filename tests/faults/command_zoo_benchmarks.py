"""Wrong calls of the benchmarks and of the commands of the kernels, and right ones beside them."""

from collections.abc import Iterator

from tests.faults.command_zoo import (
    ESCAPE,
    NO_FILE,
    NO_OUTPUT_FOLDER,
    NOT_WHOLE,
    UNDECODABLE,
    Row,
    right,
    wrong,
    wrong_values,
)

WHOLE_OPTIONS = {
    "sashimi_kernels.benchmark": ("--features", "--states", "--batch-size", "--length", "--repeats", "--threads"),
    "sashimi_kernels.warm_up": ("--d-model", "--n-state", "--length", "--batch", "--jobs"),
    "sashimi_kernels.aot": ("--jobs",),
    "sashimi_diffusion.benchmarks.denoiser": ("--d-model", "--length", "--batch-size", "--repeats", "--threads"),
    "sashimi_diffusion.benchmarks.generation": (
        "--d-model",
        "--n-layers",
        "--streams",
        "--samples",
        "--prefix",
        "--rounds",
        "--threads",
    ),
    "sashimi_diffusion.benchmarks.counters": ("--d-model", "--by-operation", "--by-line"),
    "sashimi_evaluation.benchmark": ("--clips", "--width"),
}
CHOICES = {
    "sashimi_kernels.benchmark": ("--device", "--dtype", "--backend", "--operation"),
    "sashimi_kernels.warm_up": ("--dtype",),
    "sashimi_kernels.aot": ("--target", "--kernel"),
    "sashimi_diffusion.benchmarks.counters": ("--parameterization",),
    "sashimi_diffusion.benchmarks.gpu_check": ("--only", "--minutes", "--peer"),
}
GPU_CHECK = "sashimi_diffusion.benchmarks.gpu_check"


def benchmark_rows() -> Iterator[Row]:
    """Yield all rows of the benchmarks."""
    for command, options in WHOLE_OPTIONS.items():
        for option in options:
            yield from wrong_values(command, "", option, ["0", "-1", *NOT_WHOLE], quick=1)
    for command, options in CHOICES.items():
        for option in options:
            says = "part" if option == "--only" else option[2:]
            yield from wrong_values(command, "", option, ["x", ""], says, quick=1)
            yield from wrong_values(command, "", option, {ESCAPE: "\\x1b[2Jred", UNDECODABLE: "caf\\udce9"}, quick=1)
    for command in (*WHOLE_OPTIONS, GPU_CHECK):
        yield wrong(command, "--nothing", "--nothing")
        yield wrong(command, "word", "word")
    for command in (*WHOLE_OPTIONS, GPU_CHECK):
        yield right(command, "--help", "--help")
    yield wrong("sashimi_kernels.warm_up", "", "device")
    yield from wrong_values(
        "sashimi_kernels.benchmark", "", "--device", ["cuda", "cuda:9", "mps", "meta", "hpu"], "device"
    )
    yield wrong("sashimi_kernels.benchmark", "--backend triton", "triton")
    yield wrong(GPU_CHECK, "", "device")
    yield from wrong_values(GPU_CHECK, "--dry-run", "--minutes", ["0", "-1", "nan", "x", "", "inf"])
    yield from wrong_values(GPU_CHECK, "--dry-run", "--out", NO_OUTPUT_FOLDER)
    yield from wrong_values(
        GPU_CHECK, "--dry-run", "--peer", {"nowhere": "nowhere", "notes.txt": "notes.txt", "loop": "loop"}
    )
    yield right(GPU_CHECK, "--list", "sampling")
    yield right(GPU_CHECK, "--list", reader=False)
    yield from wrong_values(
        "sashimi_evaluation.benchmark",
        "",
        "--arrays",
        NO_FILE
        | {"notes.txt": "notes.txt", "piano/model/diffusion_pytorch_model.safetensors": "diffusion_pytorch_model"},
    )
    yield from wrong_values("sashimi_diffusion.benchmarks.denoiser", "", "--length", ["100", "17"])
    yield right(
        "sashimi_kernels.benchmark",
        "--features 2 --states 2 --length 8 --repeats 1 --operation diagonal_kernel --backend torch",
        "diagonal_kernel",
    )
    yield right("sashimi_evaluation.benchmark", "--clips 60 --width 4", "FID")
