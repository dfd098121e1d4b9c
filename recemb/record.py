"""What a run leaves for reports: its record, which `recemb.report.records` documents, and its predictions."""

RECORD = "run.json"
SCHEMA = 1
PREDICTIONS = "predictions.parquet"
"""Columns `label` (0 or 1) and `probability`; one line a test row, in the order of the rows."""
