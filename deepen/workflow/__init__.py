"""The only room that knows all stages: run, lineage, account, verify, show, trace, fetch, demo."""
