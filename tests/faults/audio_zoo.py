"""The audio zoo: generated audio files of many kinds, each with what reading it must give."""

from tests.faults import audio_zoo_damaged as damaged
from tests.faults import audio_zoo_sound as sound
from tests.faults.audio_specimens import Specimen


def all_specimens() -> list[Specimen]:
    """Return the whole zoo."""
    families = (
        sound.sound,
        sound.coded,
        sound.misnamed,
        sound.streamed,
        sound.surrounded,
        sound.odd,
        damaged.cut,
        damaged.lying,
        damaged.levels,
        damaged.no_audio,
        damaged.long,
        damaged.flipped_bits,
    )
    return [specimen for family in families for specimen in family()]
