"""From finished runs to a bundle: the one place that knows both who trains and what serves."""
