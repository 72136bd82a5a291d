"""The processes of a run: launching, meeting, failing together, jobs over several nodes."""
