"""Pod networks by CNI: what is asked for, what it takes, and what came of it (docs/networking.md)."""
