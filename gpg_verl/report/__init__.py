"""What a training run did: its logs as tables and plots. Knows nothing of training itself."""
