"""Write the report of a run directory as one HTML page, without torch or detectron2."""

from d2ext.report.compare import write_comparison
from d2ext.report.page import write_report

__all__ = ["write_comparison", "write_report"]
