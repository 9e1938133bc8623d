"""Telling others, once and for certain: a queue of deliveries, by signed POST and mail."""
