"""secrun's stage0: resolve, verify, prepare, measure, hand over."""

__version__ = "0.1.0"
