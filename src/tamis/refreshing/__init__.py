"""From what a server stored to the next bundle that it serves, round by round."""
