"""Conformance suites: any model, ours or a stranger's, can be run through them."""
