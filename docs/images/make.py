"""Draw the pictures of docs/trained-model.md beside this file, with the commands of that page.

    python docs/images/make.py free-spoken-digit-dataset/recordings

The argument is the folder of the Free Spoken Digit Dataset (CC BY-SA 4.0). Its recording 7_theo_0, which was held out
of the training of sashimi-digits, is scaled to the level of the training recordings. This takes about a minute.
"""

import shlex
import sys
import tempfile
from pathlib import Path

import numpy as np

from sashimi_diffusion.commands.sample import main as sample
from sashimi_diffusion.data.audio import read_audio, write_audio
from sashimi_diffusion.data.pictures import contact_sheet

HERE, RATE = Path(__file__).parent, 8000
SAMPLER = "--steps 20 --scheduler dpmsolver++-sde-karras"


def clips(options: str, sampler: str = SAMPLER) -> list[np.ndarray]:
    """Return the clips, (samples,), that ``sashimi-sample`` makes with these options."""
    with tempfile.TemporaryDirectory() as out:
        if sample([*shlex.split(f"{options} {sampler} --out"), out]) != 0:
            raise SystemExit(f"this command failed: sashimi-sample {options}")
        return [read_audio(path, RATE) for path in sorted(Path(out).glob("*.wav"))]


def save(name: str, waveforms: list[np.ndarray], titles: list[str], **options: object) -> None:
    """Write a contact sheet as a PNG of 256 colors, which is a third as large."""
    sheet = contact_sheet(waveforms, RATE, titles, **options)  # type: ignore[arg-type]
    sheet.quantize(256).save(HERE / f"{name}.png", optimize=True)


def main(folder: Path) -> None:
    """Draw all pictures."""
    (path,) = folder.glob("7_theo_0.*")
    word = read_audio(path, RATE)
    word *= 0.04 / np.sqrt(np.square(word).mean())
    with tempfile.TemporaryDirectory() as place:
        given = f"{place}/word.wav"
        write_audio(Path(given), word[np.newaxis], RATE)
        strengths = [0.2, 0.4, 0.6, 0.8]
        varied = [
            clip for strength in strengths for clip in clips(f"--audio {given} --strength {strength} --num-samples 1")
        ]
        gaps = clips(f"--audio {given} --keep 0:0.2,0.3: --label 7 --num-samples 2")
        longer = clips(f"--audio {given} --continue --seconds 3")
    titles = ["the recording", *(f"strength {strength}" for strength in strengths)]
    save("vary", [word, *varied], titles, columns=len(titles), width=200)
    gap = [(0.2, 0.3)]
    save("fill", [word, *gaps], ["the recording", "filled", "filled, another seed"], columns=3, marked=[gap] * 3)
    save("continue", longer, ["the recording, continued"], marked=[[(len(word) / RATE, 3.0)]], width=900)
    few = [clips("--label 7 --speaker theo --num-samples 1")]
    student = "--pipeline sashimi-digits-turbo --label 7 --speaker theo --num-samples 1"
    few += [clips(f"{student} --steps {steps}", "") for steps in (4, 2, 1)]
    names = ["teacher, 20 steps", *(f"student, {steps}" for steps in ("4 steps", "2 steps", "1 step"))]
    save("few-steps", [waveform for (waveform,) in few], names, columns=4, width=220)
    save("long", clips("--seconds 10 --window 0.64 --overlap 0.16 --num-samples 1"), ["10 seconds"], width=900)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
