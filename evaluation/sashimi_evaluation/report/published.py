"""Published SC09 figures, grouped by who computed them.

FID, IS, mIS and AM are figures *of a classifier*, and nearly every group has its own: they can be compared within a
group and not between groups, nor with figures from the classifier that comes with this package.
"""

from dataclasses import dataclass

WARNING = (
    "Figures can be compared within a group. Groups differ in their classifiers, or in who trained the models and drew "
    "the samples: do not compare figures with those of another group, nor with figures from any other classifier, such "
    "as the one bundled with this package."
)


@dataclass(frozen=True)
class Anchor:
    """One row of a published table; None is what its source does not give.

    Attributes:
        model: as its source calls it.
        parameters: their number.
        nll: test negative log-likelihood, as printed (lower is better).
        fid: Fréchet distance (lower is better).
        fid_class: Fréchet distance computed class by class (lower is better); no substitute for ``fid``.
        inception: Inception Score (higher is better); in groups (a) and (b) as the official repository computes it.
        mis: modified Inception Score, mCS with the group's classifier (higher is better).
        am: AM score (lower is better).
        accuracy: share of class-conditional samples that are recognised, from 0 to 1.
    """

    model: str
    parameters: int | None = None
    nll: float | None = None
    fid: float | None = None
    fid_class: float | None = None
    inception: float | None = None
    mis: float | None = None
    am: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class AnchorGroup:
    """Figures of one classifier.

    Attributes:
        name: short heading.
        classifier: whose classifier and features they are figures of.
        source: where they are printed.
        anchors: the rows.
    """

    name: str
    classifier: str
    source: str
    anchors: tuple[Anchor, ...]


def _row(
    model: str, millions: float | None, nll: float | None, fid: float, inception: float, mis: float, am: float
) -> Anchor:
    parameters = None if millions is None else round(millions * 1_000_000)
    return Anchor(model, parameters, nll, fid, inception=inception, mis=mis, am=am)


OFFICIAL = AnchorGroup(
    "Official protocol",
    "ResNeXt-29 8x64 of the official S4 repository",
    "Mamba, arXiv 2312.00752, Table 4; SaShiMi (original): README of the official S4 repository",
    (
        _row("SampleRNN", 35.0, 2.042, 8.96, 1.71, 3.02, 1.76),
        _row("WaveNet", 4.2, 1.925, 5.08, 2.27, 5.80, 1.47),
        _row("SaShiMi (original)", 4.1, 1.891, 1.99, 4.12, 24.57, 0.90),
        _row("SaShiMi", 5.8, 1.873, 1.99, 5.13, 42.57, 0.74),
        _row("WaveGAN", 19.1, None, 2.03, 4.90, 36.10, 0.80),
        _row("DiffWave", 24.1, None, 1.92, 5.26, 51.21, 0.68),
        _row("DiffWave + SaShiMi", 23.0, None, 1.42, 5.94, 69.17, 0.59),
        _row("Mamba 6.1M", 6.1, 1.852, 0.94, 6.26, 88.54, 0.52),
        _row("Mamba 24.3M", 24.3, 1.860, 0.67, 7.33, 144.9, 0.36),
        _row("Real clips, training set", None, None, 0.00, 8.56, 292.5, 0.16),
        _row("Real clips, test set", None, None, 0.02, 8.33, 257.6, 0.19),
    ),
)

RERUNS = AnchorGroup(
    "Re-runs by a third party",
    "ResNeXt-29 8x64 of the official S4 repository, run by others on models they trained",
    "README of github.com/gzhu06/Unconditional-Audio-Generation-Benchmark",
    (
        _row("WaveNet", None, None, 4.93, 2.39, 6.06, 1.45),
        _row("SampleRNN", None, None, 8.97, 1.71, 2.98, 1.77),
        _row("SaShiMi", None, None, 2.03, 4.31, 25.88, 0.88),
        _row("DiffWave (1M)", None, None, 1.80, 5.70, 51.88, 0.65),
        _row("audio-diffusion-pytorch U-Net, 300k steps", None, None, 1.51, 7.07, 105.8, 0.471),
    ),
)

DIFFWAVE = AnchorGroup(
    "DiffWave paper",
    "the DiffWave authors' own ResNeXt",
    "DiffWave, arXiv 2009.09761",
    (
        Anchor("WaveNet-256", fid=2.947, inception=2.84, mis=10.0),
        Anchor("WaveGAN", fid=1.349, inception=4.53, mis=36.6),
        Anchor("DiffWave", fid=1.287, inception=5.30, mis=59.4),
        Anchor("WaveNet-256, class-conditional", fid_class=6.954, inception=3.46, mis=18.9, accuracy=0.607),
        Anchor("DiffWave, class-conditional", fid_class=1.113, inception=6.63, mis=117.4, accuracy=0.912),
        Anchor("DiffWave deep and thin, class-conditional", fid_class=0.932, inception=6.92, mis=133.8, accuracy=0.94),
    ),
)

MEL_DIFFUSION = AnchorGroup(
    "Log-mel diffusion and a vocoder",
    "classifier and features as in that paper",
    "Makarov and Gerkmann, arXiv 2606.20457",
    (
        Anchor("U-Net", 16_600_000, fid=0.17, inception=7.51),
        Anchor("Score-Subnet", 12_300_000, fid=0.17, inception=7.82),
        Anchor("U-Net, classifier guidance", 16_600_000, fid=0.03, inception=8.36),
        Anchor("Score-Subnet, classifier guidance", 12_300_000, fid=0.03, inception=8.65),
    ),
)

GROUPS: tuple[AnchorGroup, ...] = (OFFICIAL, RERUNS, DIFFWAVE, MEL_DIFFUSION)
