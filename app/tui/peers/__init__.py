"""What the screen of the machines says and draws, without widgets."""
