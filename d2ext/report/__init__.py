"""Write a run directory as one page; needs files only, neither torch nor detectron2."""

from d2ext.report.compare import write_comparison
from d2ext.report.page import write_report

__all__ = ["write_comparison", "write_report"]
