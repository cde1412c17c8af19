"""What pages of all kinds are made of: numbers as text, charts, tables."""
