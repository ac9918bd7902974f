"""The report of a run: the gain table, and one self-contained HTML file."""

from keras_exfm.report.gains import gain_table
from keras_exfm.report.page import write
from keras_exfm.report.results import ReportError, Results, load

__all__ = ["ReportError", "Results", "gain_table", "load", "write"]
