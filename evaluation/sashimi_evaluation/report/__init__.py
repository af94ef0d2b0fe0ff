"""The report as one HTML page: figures, spectrograms and players in a file that needs no network."""

from sashimi_evaluation.report.data import Classifier, Clip, Method, Metric, Neighbour, ReportData
from sashimi_evaluation.report.page import write_report

__all__ = ["Classifier", "Clip", "Method", "Metric", "Neighbour", "ReportData", "write_report"]
