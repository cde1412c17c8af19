"""The history of a training run: one format, one writer, one reader."""
