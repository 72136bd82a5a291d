"""Staying near the base: penalties, their settings, and how much each weight matters."""
