"""Forecasts before any money is spent; pure arithmetic, no torch."""
