"""Projection of weights onto the manifold of natural-image embeddings."""
