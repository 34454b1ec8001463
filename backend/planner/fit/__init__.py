"""What fits on which hardware, how fast it would be, and what it costs: for the wizard and `shardwise fit`. Pure."""
