"""Published rankers, one file each; ``catalog`` is the table of their names."""
