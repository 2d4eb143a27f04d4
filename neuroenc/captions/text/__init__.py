"""Words, phrases and parses of captions."""
