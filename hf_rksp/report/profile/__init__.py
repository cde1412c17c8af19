"""The report on a profile: `report.json`, and what is rendered from it."""
