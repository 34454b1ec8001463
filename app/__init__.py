"""The faces: command line, REST endpoint, terminal UI, chat history. Leaves all model work to backend."""
