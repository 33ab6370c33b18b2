"""Whole funnels against each other: trained on one market's log, then tested in that market."""
