"""Jobs that are expected at certain times: which, when, and whether they came."""
