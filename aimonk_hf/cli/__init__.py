"""The command line; each command parses its flags, calls the library and prints."""
