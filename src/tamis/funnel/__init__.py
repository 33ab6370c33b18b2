"""The funnel: what its stages share. Imports no trainer."""
