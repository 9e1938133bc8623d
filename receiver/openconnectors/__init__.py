"""Everything known of the vendor: signatures, notifications, API."""
