"""The screens, one file each; they compose widgets and react to their messages."""
