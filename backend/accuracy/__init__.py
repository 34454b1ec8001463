"""How far formats of K and V move a model's answers: measured on a text, judged, and chosen between."""
