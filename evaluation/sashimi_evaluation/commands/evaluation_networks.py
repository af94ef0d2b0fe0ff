"""The networks of ``sashimi-evaluate``: the classifier and the feature extractor that the options choose."""

from collections.abc import Sequence

import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import listed, printable
from sashimi_evaluation.classifiers import WordClassifier, load_classifier
from sashimi_evaluation.classifiers.loading import bundled_classifiers
from sashimi_evaluation.clips import ClipFolder, class_index
from sashimi_evaluation.extractors import EMBEDDING, FeatureExtractor, load_extractor

DEFAULT_CLASSIFIER = "digits-small"
NO_CLASSIFIER = "none"
"""The value of --classifier for clips without classes."""


def load_features(
    location: str | None, classifier: str | None, protocol: str, device: torch.device
) -> FeatureExtractor | None:
    """Return the feature extractor, or None if the features are those of the classifier.

    Args:
        location: the option --features, or None.
        classifier: the option --classifier, or None.
        protocol: the option --protocol.
        device: device of the extractor.

    Raises:
        UserError: the extractor cannot be loaded, or the protocol needs a classifier and there is none.
    """
    without = classifier == NO_CLASSIFIER
    if without and protocol != "default":
        raise UserError(
            f"--protocol {protocol} has metrics of classes, but --classifier is {NO_CLASSIFIER}: leave out one of them"
        )
    if location is None:
        return load_extractor(EMBEDDING, device) if without else None
    return load_extractor(location, device)


def load_classes(
    name: str | None, sets: Sequence[ClipFolder], read: Sequence[ClipFolder], device: torch.device
) -> tuple[WordClassifier | None, list[str]]:
    """Return the classifier, or None for clips without classes, and notes on the choice.

    Args:
        name: the option --classifier; None chooses the bundled classifier that knows the classes of the sets.
        sets: the clips to evaluate.
        read: the clips to evaluate and the recordings that they are compared with.
        device: device of the classifier.

    Raises:
        UserError: there is no such classifier, or it does not know a class.
    """
    if name == NO_CLASSIFIER:
        return None, []
    if name is not None:
        classifier = load_classifier(name, device)
        check_classes(sets, classifier)
        return classifier, []
    bundled = bundled_classifiers(device)
    classifier = fitting_classifier(sets, bundled)
    if any(knows_a_class(clips, each) for clips in read for each in bundled):
        return classifier, []
    return classifier, [
        f"no clip has a class that a bundled classifier knows: unless they are words of {classifier.name}, the metrics "
        f"of classes (IS, mCS, AM) mean little, and --classifier {NO_CLASSIFIER} leaves them out"
    ]


def fitting_classifier(sets: Sequence[ClipFolder], bundled: Sequence[WordClassifier]) -> WordClassifier:
    """Return the first bundled classifier that knows the classes of all sets, or of the most."""

    def fit(classifier: WordClassifier) -> tuple[int, bool]:
        known = sum(clips.labeled_by(classifier.class_names).labeled for clips in sets)
        return known, classifier.name == DEFAULT_CLASSIFIER

    return max(bundled, key=fit)


def knows_a_class(clips: ClipFolder, classifier: WordClassifier) -> bool:
    """Return whether a classifier knows the class that the record, the name or the folder gives to any clip."""
    words = {word for own in clips.words for word in own}
    return any(class_index(word, classifier.class_names) >= 0 for word in words)


def check_classes(sets: Sequence[ClipFolder], classifier: WordClassifier) -> None:
    """Check that a classifier knows the classes that the records or the names of the files give to all clips.

    Raises:
        UserError: it does not know a class.
    """
    for clips in sets:
        classes = {words[0] for words in clips.words if words}
        unknown = sorted(name for name in classes if class_index(name, classifier.class_names) < 0)
        if clips.named and unknown:
            raise UserError(
                f"the clips of {printable(clips.name)} have the classes {listed(unknown, 5)}, which the classifier "
                f"{printable(classifier.name)} does not know (its classes are {listed(classifier.class_names, 12)}): "
                "choose another --classifier, or leave it out"
            )
