"""Backends for solves on GPUs."""
