"""The runs that a config can start: each is one linear `run(config, workdir)`."""
