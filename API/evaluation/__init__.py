"""Scores, comparisons and pictures."""
