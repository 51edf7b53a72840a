"""Which veRL this is written for, how its functions are fetched, and what is broken in it."""
