"""Tables of the early stage: cascades that are simulated, and rows trained and judged on them."""
