"""Pages and figures made from run records only: no model, no data, no network."""
