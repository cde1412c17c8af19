"""Audit the Mamba models of the zoo: `rksp zoo run` with their manifest. Options: `--help`."""

from audit_family import run

run("mamba")
