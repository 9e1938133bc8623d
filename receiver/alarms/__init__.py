"""Conditions that need a person, and the channels they are reported on."""
