"""What any service needs: clock, logs, rate limits."""
