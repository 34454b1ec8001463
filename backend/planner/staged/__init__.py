"""Several stages: a model's layers over groups of devices, on one machine or more."""
