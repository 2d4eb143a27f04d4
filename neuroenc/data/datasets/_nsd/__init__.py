"""The Natural Scenes Dataset, read from its official folders: design, regions, single-trial betas, pictures."""
