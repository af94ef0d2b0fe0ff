"""The evaluation report as one HTML page: metrics, spectrograms and players in a file that needs no network."""

from sashimi_evaluation.report.data import Classifier, Clip, Method, Neighbor, ReportData
from sashimi_evaluation.report.page import write_report

__all__ = ["Classifier", "Clip", "Method", "Neighbor", "ReportData", "write_report"]
