"""The questions of a listening test, their allowed answers, and the columns of the raters' files."""

QUALITY, INTELLIGIBILITY, TRANSCRIPTION, DIVERSITY = "quality", "intelligibility", "transcription", "diversity"

CLIP_RATINGS = (QUALITY, INTELLIGIBILITY, TRANSCRIPTION)
RATINGS = (*CLIP_RATINGS, DIVERSITY)  # the question "diversity" is about all clips of a method together

OPINIONS = ("1", "2", "3", "4", "5")
WORDS = (*"0123456789", "none")

COLUMNS = ("test", "rater", "item", *RATINGS, "seconds", "plays", "finished")


def allowed(rating: str) -> tuple[str, ...]:
    """Return the allowed answers to a rating."""
    return WORDS if rating == TRANSCRIPTION else OPINIONS
