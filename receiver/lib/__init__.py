"""What any service needs: clock, logs, rate limits, guarded HTTP, records of a file."""
