"""One file a format of raw data, found by the name that a source's `format` gives in params.yaml."""
