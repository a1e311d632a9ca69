"""Pod networks."""
