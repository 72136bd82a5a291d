"""Pages over run directories: the report. It reads what the stages wrote and owns no storage."""
