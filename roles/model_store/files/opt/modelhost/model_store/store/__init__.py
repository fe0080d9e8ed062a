# MIT licence (see LICENSE)
"""Brings model weights onto this disk, whole and verified, or not at all. See __main__.py."""
