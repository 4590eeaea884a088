"""The pipeline, which samples codes and decodes them, and the functions that make one."""
