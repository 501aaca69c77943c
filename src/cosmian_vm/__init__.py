"""Cosmian VM: verify at any time that a confidential machine is still exactly the one you set up."""

__version__ = "2.0.0"
