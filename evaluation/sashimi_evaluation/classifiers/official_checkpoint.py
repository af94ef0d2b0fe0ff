"""Conversion of the official SC09 classifier."""

from torch import Tensor

from sashimi_diffusion.interop.checkpoint import Checkpoint, build
from sashimi_evaluation.classifiers import ResNeXtClassifier

_PARALLEL = "module."  # prefix of all names if the network was trained on several devices
_STEM = "conv_1_3x3.weight"
_LAYERS = {
    "reduce": "conv_reduce",
    "reduce_norm": "bn_reduce",
    "grouped": "conv_conv",
    "grouped_norm": "bn",
    "expand": "conv_expand",
    "expand_norm": "bn_expand",
    "shortcut": "shortcut.shortcut_conv",
    "shortcut_norm": "shortcut.shortcut_bn",
}


def is_classifier_checkpoint(tensors: dict[str, Tensor]) -> bool:
    """Return whether a state dict belongs to the official classifier."""
    return _STEM in tensors or _PARALLEL + _STEM in tensors


def convert_classifier(tensors: dict[str, Tensor]) -> ResNeXtClassifier:
    """Convert the state dict of the official classifier; the shapes of its tensors imply the configuration.

    Returns:
        ResNeXtClassifier: the classifier, in evaluation mode.

    Raises:
        UserError: tensors are missing, unexpected or misshapen (the message lists them).
    """
    checkpoint = Checkpoint({name.removeprefix(_PARALLEL): tensor for name, tensor in tensors.items()})
    first = "stage_1.stage_1_bottleneck_0"
    inner_channels, group_channels, _, _ = checkpoint.shape(f"{first}.conv_conv.weight", 4)
    out_channels, _, _, _ = checkpoint.shape(f"{first}.conv_expand.weight", 4)
    num_classes, _ = checkpoint.shape("classifier.weight", 2)
    blocks = sum(name.startswith("stage_1.") and name.endswith(".conv_conv.weight") for name in checkpoint.tensors)
    model = build(
        ResNeXtClassifier,
        checkpoint,
        num_classes=num_classes,
        depth=9 * blocks + 2,
        cardinality=inner_channels // group_channels,
        base_width=group_channels,
        widen_factor=max(1, out_channels // 64),
    )
    for name, target in model.state_dict().items():
        checkpoint.copy(target, official_name(name))
    checkpoint.finish()
    return model.eval()


def official_name(name: str) -> str:
    """Return the official name of the tensor called ``name`` in :class:`ResNeXtClassifier`."""
    parts = name.split(".")
    if parts[0] == "stages":
        stage, block, layer, tensor = int(parts[1]) + 1, *parts[2:]
        return f"stage_{stage}.stage_{stage}_bottleneck_{block}.{_LAYERS[layer]}.{tensor}"
    return name.replace("stem_norm.", "bn_1.").replace("stem.", "conv_1_3x3.")
