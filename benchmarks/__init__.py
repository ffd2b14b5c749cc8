"""Benchmarks: each prints its conditions and what it measured against a named peer or a stated target."""
