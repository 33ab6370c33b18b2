"""Tables of retrieval: trained models, and ways to search with them."""
