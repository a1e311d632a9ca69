"""Admission of images: who must have signed what."""
