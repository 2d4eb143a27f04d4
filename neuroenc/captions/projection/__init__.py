"""From weights to an embedding on the manifold of natural images."""
