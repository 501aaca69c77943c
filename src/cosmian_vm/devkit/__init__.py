"""Simulated hardware in the real formats. Production code never imports this package."""
