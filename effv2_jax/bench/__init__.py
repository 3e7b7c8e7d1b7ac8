"""Benchmarks: each module is a program that prints one table."""
