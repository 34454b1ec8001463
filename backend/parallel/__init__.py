"""Several ranks of one model: how it is divided over them, and how they add up what each computed."""
