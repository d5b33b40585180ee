"""Sampling on the device: biases, penalties, filters, random choice and log probabilities of a whole batch."""
