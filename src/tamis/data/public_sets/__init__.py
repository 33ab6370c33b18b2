"""Readers of public data sets: from the published files to split logs with a schema.

Each reader gives one table for each split, with every published column that a model may see, so
that tamis and any rival read the very same rows. The published files themselves are never part of
tamis.
"""
