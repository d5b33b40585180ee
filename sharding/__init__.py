"""Meshes, axis names, the placement of arrays over several devices, and processes that join."""
