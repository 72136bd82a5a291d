"""Beside the updates: scores, trackers, signals, the watchdog, the record of a step."""
