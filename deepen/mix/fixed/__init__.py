"""Rows from elsewhere: token ids that another tool has packed."""
