"""Measurements become a verdict."""
