"""A seeded simulator: the production state machines over simulated time, wires, machines and devices."""
