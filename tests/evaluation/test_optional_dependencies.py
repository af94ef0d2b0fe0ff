"""Tests of the metrics without the packages of the extra ``eval``."""

import ast
import subprocess
import sys
from pathlib import Path

import sashimi_evaluation

PACKAGE = Path(sashimi_evaluation.__file__).parent

WITHOUT_EXTRA = """
import sys

for package in ("scipy", "sklearn", "matplotlib"):
    sys.modules[package] = None

import numpy as np

import sashimi_evaluation as evaluation
from sashimi_diffusion.errors import UserError
from sashimi_evaluation.evaluation import distance_metrics
from sashimi_evaluation.metrics.intervals import Resampling, wilson_interval
from sashimi_evaluation.metrics.official import official_frechet_distance

random = np.random.default_rng(0)
features, probs = random.normal(size=(60, 3)), random.dirichlet(np.ones(4), size=60)
evaluation.frechet_distance(features, features + 1)
evaluation.kernel_distance(features, features + 1)
evaluation.inception_score(probs)
evaluation.label_accuracy(probs, np.zeros(60, dtype=int))
evaluation.precision_recall_density_coverage(features, features)
wilson_interval(1, 2)
metrics = {metric.key: metric for metric in distance_metrics(features, features, Resampling(resamples=2))}
assert metrics["fid"].value is not None
assert metrics["ndb"].value is None
assert "pip install scikit-learn" in metrics["ndb"].note
for function, package in ((evaluation.ndb, "scikit-learn"), (official_frechet_distance, "scipy")):
    try:
        function(features, features)
    except UserError as error:
        assert str(error).endswith(f"needs {package}: pip install {package}")
    else:
        raise AssertionError(function)
"""


def test_metrics_without_the_extra_work_or_name_it():
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTRA], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_evaluation_does_not_import_pipelines():
    for file in PACKAGE.rglob("*.py"):
        # A program of its own, which samples, and a sub-command that compares pipelines and is imported when it runs.
        if file.name in ("scheduler_benchmark.py", "likelihood_comparison.py"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("sashimi_diffusion.pipelines"), file
