"""The harness that every experiment of scripts/reproduce runs on; ../README.md says how it is used."""
