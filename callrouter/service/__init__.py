"""The use cases, each driven by the daemon, the console or the command line."""
