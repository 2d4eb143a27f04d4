"""Checks of captions: scores, grounding, stability, controls."""
