"""What a user holds: the client, its futures, and ways to wait for them."""
