"""The page of a training run, rendered from its history."""
