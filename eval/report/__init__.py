"""A report about runs: one HTML page that needs no network, or a Markdown table."""

from dlm.eval.report.page import write_report
from dlm.eval.report.text import markdown

__all__ = ["markdown", "write_report"]
