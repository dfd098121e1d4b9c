"""The name and version of the one record a run leaves; `recemb.report.records` documents what it holds."""

RECORD = "run.json"
SCHEMA = 1
