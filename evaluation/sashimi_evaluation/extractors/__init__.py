"""Networks that compute the features for the distances between sets of clips."""

from sashimi_evaluation.extractors.interface import FeatureExtractor, NamedExtractor, is_named, seconds_of
from sashimi_evaluation.extractors.loading import EMBEDDING, NAMED, load_extractor, sources_of

__all__ = [
    "EMBEDDING",
    "NAMED",
    "FeatureExtractor",
    "NamedExtractor",
    "is_named",
    "load_extractor",
    "seconds_of",
    "sources_of",
]
