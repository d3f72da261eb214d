"""The one command; a file per subcommand, each with `main(arguments) -> exit code`."""
