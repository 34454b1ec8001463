"""Where models come from: sources, downloads, checks. No torch."""
