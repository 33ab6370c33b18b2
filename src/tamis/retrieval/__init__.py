"""From a trained model and a corpus to the items of one request: index snapshots and search."""
