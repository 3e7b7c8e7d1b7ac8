"""Devices, processes and executables."""
