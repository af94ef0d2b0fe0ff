"""Metrics of generated clips, one file for each.

A file holds the computation, and a function ``..._metrics`` that returns the values of one set of clips as
:class:`.metric.Metric` objects with confidence intervals and notes. Functions that take ``ArrayLike`` validate their
arguments. Functions that take ``np.ndarray`` expect float64 arrays that were validated with :mod:`.arrays`.
"""
