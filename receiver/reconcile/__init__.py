"""Asking the vendor about jobs whose callback never came."""
