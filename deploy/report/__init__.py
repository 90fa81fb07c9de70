"""The page of results: figures (PNG), their data (CSV) and one self-contained HTML page in <run>/report."""

from deploy.report.write import write_report

__all__ = ["write_report"]
