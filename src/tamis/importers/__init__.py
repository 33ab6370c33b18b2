"""Set-ups of other libraries as schemas and recipes of tamis."""
