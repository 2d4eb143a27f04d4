"""Files of scores and captions for other programs."""
