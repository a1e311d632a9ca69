"""Shared by the test tiers: images and registries that tests build and start themselves."""
