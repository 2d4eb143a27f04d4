"""In-context encoders: a transformer that turns a few (stimulus, response) pairs of a voxel into its encoder."""
