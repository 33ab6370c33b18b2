"""Tables of results: every (model, dataset, seed) of a table, resumed where it stopped."""
