"""Pods: their state machine and their life."""
