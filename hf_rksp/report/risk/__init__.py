"""The page of ``rksp risk``: probability of being lost against the learning rate."""
