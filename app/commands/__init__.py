"""The commands of the command line, one file each. Options and their help texts are `app.cli`'s."""
