"""Makes the pocket world's data folder from pinned packages: python -m sensesearch_jax.pocket.world.make_files."""
