"""The data of a step: read from the order, ahead of time, counted by source."""
