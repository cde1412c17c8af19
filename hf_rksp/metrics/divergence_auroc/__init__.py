"""A metric that evaluate loads by its path."""
