"""What keeps any veRL run whole, whatever it trains: checkpoints, liveness, data, last words."""
