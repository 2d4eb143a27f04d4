"""The explorer of voxel captions: a map, a list and a panel over data that lie beside the page."""
