"""What keeps any veRL run whole: checkpoints, liveness, data, last words. Nothing here knows GPG."""
