"""What people look at: grids of images, charts, maps of codes, pages."""
