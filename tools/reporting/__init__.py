"""HTML report of `cavmae report`: its sources, blocks, charts and template."""
