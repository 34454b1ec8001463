"""The engine: requests, scheduler, runner, model library and surgery. Leaves pages to kvcache, faces to app."""
