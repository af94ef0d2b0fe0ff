"""Metrics of generated clips, one file per metric or group of metrics.

Every file has public functions for arrays, and a function ``..._metrics`` that returns the results of one set of clips
as :class:`.metric.Metric` objects with confidence intervals and notes. Functions that take ``ArrayLike`` validate their
arguments. Functions that take ``np.ndarray`` expect float64 arrays that were validated with :mod:`.arrays`.

Shapes: ``clips`` is the number of clips of a set, ``width`` the number of features of a clip.
"""
