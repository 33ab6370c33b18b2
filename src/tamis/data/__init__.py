"""From raw logs to batches: schema, ingest, encoders, datasets, loaders, the simulated market."""
