"""Output for people to look at: grids of images, charts, maps of codes, pages."""
