"""Drawn, captioned scenes: small pictures about which everything is known."""
