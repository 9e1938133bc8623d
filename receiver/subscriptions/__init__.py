"""Sending outcomes and alarms to other systems: where, what is queued, what became of it."""
