"""Text and image spaces that are trained from one's own captions, and the folders that they are kept in."""
