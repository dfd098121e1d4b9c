"""Reports: gathers run records into tables, charts and one self-contained page."""

from recemb.report.records import LeftOut
from recemb.report.writer import Report, write_report

__all__ = ["LeftOut", "Report", "write_report"]
