"""Measurements become a verdict: votes combined, errors estimated, rare views set aside."""
