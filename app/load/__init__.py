"""Load on an OpenAI-compatible server, measured as the field does. The command is `app.commands.bench`."""
