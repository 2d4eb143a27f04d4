"""Whether captions are true: scores, grounding, stability."""
