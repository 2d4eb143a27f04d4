"""Voxels drawn on meshes and slices."""
