"""A verdict becomes something that a person reads."""
