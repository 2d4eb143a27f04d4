"""What captions say of regions: words, categories, clusters, contrasts."""
