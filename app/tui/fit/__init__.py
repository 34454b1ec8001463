"""The model-fit wizard's values and words, without widgets: wishes, offers, figures, the machine's picture. Pure."""
