"""Runs that continue in another library."""
