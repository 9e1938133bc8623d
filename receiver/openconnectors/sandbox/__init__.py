"""A stand-in for the vendor: its bulk API, a small cloud service, signed callbacks with retries."""
