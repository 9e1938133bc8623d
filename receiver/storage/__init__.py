"""Where verified events, jobs and credentials are kept: SQLite or PostgreSQL, one code path."""
