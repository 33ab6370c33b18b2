"""tamis."""
