"""The funnel: a request, stages that keep ever fewer ads, an auction; and offline replay."""
