"""Frozen records, as `secrun_attest.frozen` makes them."""

from secrun_attest.frozen import field, ordered, record, replace, row

__all__ = ["field", "ordered", "record", "replace", "row"]
