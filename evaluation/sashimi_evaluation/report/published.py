"""Published SC09 results, grouped by classifier and source.

FID, IS, mIS and AM depend on the classifier, and most groups used different ones. Results can be compared within a
group, but not between groups, and not with results from the classifier of this package.
"""

from dataclasses import dataclass

WARNING = (
    "Results can be compared within a group. Groups differ in the classifier, or in who trained the models and "
    "generated the samples: do not compare results with those of another group, or with results from any other "
    "classifier, such as the one bundled with this package."
)


@dataclass(frozen=True)
class PublishedResult:
    """One row of a published table; None where the source has no value.

    Attributes:
        model: name of the model in the source.
        parameters: number of parameters.
        nll: negative log-likelihood of the test set in bits per sample (lower is better).
        fid: Fréchet distance (lower is better).
        fid_by_class: Fréchet distance computed class by class (lower is better); not comparable with ``fid``.
        inception_score: Inception Score (higher is better). In ``OFFICIAL`` and ``RERUNS`` it is the value of the
            official repository, see :func:`sashimi_evaluation.metrics.official.official_inception_score`.
        mis: modified Inception Score, also called mCS (higher is better).
        am: AM score (lower is better).
        accuracy: fraction of class-conditional samples that are classified as their class, from 0 to 1.
    """

    model: str
    parameters: int | None = None
    nll: float | None = None
    fid: float | None = None
    fid_by_class: float | None = None
    inception_score: float | None = None
    mis: float | None = None
    am: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class ResultGroup:
    """Results that were computed with the same classifier.

    Attributes:
        name: short heading.
        classifier: the classifier that computed the probabilities and features.
        source: publication of the results.
        results: the rows of the table.
    """

    name: str
    classifier: str
    source: str
    results: tuple[PublishedResult, ...]


def _row(
    model: str, millions: float | None, nll: float | None, fid: float, inception_score: float, mis: float, am: float
) -> PublishedResult:
    parameters = None if millions is None else round(millions * 1_000_000)
    return PublishedResult(model, parameters, nll, fid, inception_score=inception_score, mis=mis, am=am)


OFFICIAL = ResultGroup(
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

RERUNS = ResultGroup(
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

DIFFWAVE = ResultGroup(
    "DiffWave paper",
    "the DiffWave authors' own ResNeXt",
    "DiffWave, arXiv 2009.09761",
    (
        PublishedResult("WaveNet-256", fid=2.947, inception_score=2.84, mis=10.0),
        PublishedResult("WaveGAN", fid=1.349, inception_score=4.53, mis=36.6),
        PublishedResult("DiffWave", fid=1.287, inception_score=5.30, mis=59.4),
        PublishedResult(
            "WaveNet-256, class-conditional", fid_by_class=6.954, inception_score=3.46, mis=18.9, accuracy=0.607
        ),
        PublishedResult(
            "DiffWave, class-conditional", fid_by_class=1.113, inception_score=6.63, mis=117.4, accuracy=0.912
        ),
        PublishedResult(
            "DiffWave deep and thin, class-conditional",
            fid_by_class=0.932,
            inception_score=6.92,
            mis=133.8,
            accuracy=0.94,
        ),
    ),
)

MEL_DIFFUSION = ResultGroup(
    "Log-mel diffusion and a vocoder",
    "classifier and features as in that paper",
    "Makarov and Gerkmann, arXiv 2606.20457",
    (
        PublishedResult("U-Net", 16_600_000, fid=0.17, inception_score=7.51),
        PublishedResult("Score-Subnet", 12_300_000, fid=0.17, inception_score=7.82),
        PublishedResult("U-Net, classifier guidance", 16_600_000, fid=0.03, inception_score=8.36),
        PublishedResult("Score-Subnet, classifier guidance", 12_300_000, fid=0.03, inception_score=8.65),
    ),
)

GROUPS: tuple[ResultGroup, ...] = (OFFICIAL, RERUNS, DIFFWAVE, MEL_DIFFUSION)
