"""Frozen records: the confinement compiler has them too, and it stands below."""

from secrun_policies.record import field, ordered, record, replace, row

__all__ = ["field", "ordered", "record", "replace", "row"]
