"""A run directory -> one page. Reads files only and needs neither torch nor detectron2."""

from d2ext.report.compare import write_comparison
from d2ext.report.page import write_report

__all__ = ["write_comparison", "write_report"]
