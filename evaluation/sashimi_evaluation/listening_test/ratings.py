"""What raters are asked, and how their answers are written down."""

QUALITY, INTELLIGIBILITY, TRANSCRIPTION, DIVERSITY = "quality", "intelligibility", "transcription", "diversity"

CLIP_RATINGS = (QUALITY, INTELLIGIBILITY, TRANSCRIPTION)
RATINGS = (*CLIP_RATINGS, DIVERSITY)  # diversity is a rating of all clips of a method together

OPINIONS = ("1", "2", "3", "4", "5")
WORDS = (*"0123456789", "none")

COLUMNS = ("test", "rater", "item", *RATINGS, "seconds", "plays", "finished")


def allowed(rating: str) -> tuple[str, ...]:
    """The answers that a rating may have."""
    return WORDS if rating == TRANSCRIPTION else OPINIONS
