"""Runtime of a long run: device mesh, processes, workdir, metrics, progress, threads."""
