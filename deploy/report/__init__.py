"""The page of results: figures (PNG), their data (CSV) and one self-contained HTML page in <run>/report."""

from vcppo.deploy.report.write import has_results, write_report

__all__ = ["has_results", "write_report"]
