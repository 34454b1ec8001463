"""What this machine can and cannot do, as findings with fixes. The command is `app.commands.doctor`."""
