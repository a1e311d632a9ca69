"""Pods and their host on the way into the event log: what is measured, when, and what if it cannot be.

`secrun_attest` knows logs, TPMs and evidence; this package knows pods, roots and settings.
"""
