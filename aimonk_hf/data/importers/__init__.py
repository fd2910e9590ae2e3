"""Other tools' labels: a function for each format, all named in `formats.FORMATS`."""
