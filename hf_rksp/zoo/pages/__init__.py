"""The pages of the model zoo, rendered from its shelf."""
