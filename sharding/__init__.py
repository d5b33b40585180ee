"""Meshes, axis names and the placement of parameters over several devices. Empty until a model spans more than one."""
