"""Repairs of a sweep. Per repair: intent, condition read again, effect, condition read once more, outcome: each recorded."""
