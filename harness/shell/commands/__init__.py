"""The subcommands of `evenbench`, one module each. Nothing imports them."""
