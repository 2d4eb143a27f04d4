"""Analyses of captions by region: words, categories, clusters, contrasts."""
